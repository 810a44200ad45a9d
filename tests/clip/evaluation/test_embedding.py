"""Features of pictures and texts: in any blocks, from any processes, and what cannot be read counted once."""

from pathlib import Path

import pytest
import torch
from webdataset.writer import TarWriter

from steering import RunError
from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import PairPictures, PictureSet, Work, embed_classes, embed_texts
from steering.clip.evaluation.suites import PairSet
from steering.clip.models import EMOJI, build


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return build(EMOJI).eval()


@pytest.fixture
def pictures(tars):
    """Makes the pictures of 20 pairs, some of them broken."""

    def make(*broken: int, **options) -> PictureSet:
        shards = Shards.open(tars(1, broken=broken))
        return PictureSet(PairPictures(shards, range(20)), **options)

    return make


def test_features_are_those_of_the_pictures_that_can_be_read(pictures, towers):
    subset = pictures(3, 17)
    result = subset.embed(towers)
    assert subset.usable == [entry for entry in range(20) if entry not in (3, 17)]
    one_by_one = [towers.encode_images(towers.preprocess(subset.source.load(entry))[None]) for entry in subset.usable]
    torch.testing.assert_close(result, torch.cat(one_by_one).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("work", [Work(block=3), Work(block=1), pytest.param(Work(workers=2), marks=pytest.mark.slow)])
def test_blocks_and_processes_change_no_feature(pictures, towers, work):
    subset = pictures(3)
    torch.testing.assert_close(subset.embed(towers, work), subset.embed(towers), rtol=0, atol=1e-6)


def test_what_cannot_be_read_is_counted_once_however_often_it_is_asked_for(pictures, towers):
    subset = pictures(3, 17)
    assert subset.usable and subset.usable
    for _ in range(2):
        subset.embed(towers)
    assert (subset.skips.seen, dict(subset.skips.reasons)) == (20, {"not a picture": 2})
    assert "00003" in subset.skips.examples[0]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_shard_that_disappears_is_told_in_one_line(pictures, towers, workers):
    subset = pictures()
    url = subset.source.shards.index[0].url
    Path(url).unlink()
    with pytest.raises(RunError) as error:
        subset.embed(towers, Work(workers=workers))
    assert str(error.value) == f"{url} could not be read: No such file or directory"


def test_a_second_evaluation_reads_no_picture_again(pictures, towers, monkeypatch):
    subset = pictures(3)
    first = subset.embed(towers)
    monkeypatch.setattr(PairPictures, "load", lambda self, entry: pytest.fail("read again"))
    assert torch.equal(subset.embed(towers), first)
    assert len(subset.usable) == 19


def test_too_many_broken_pictures_end_the_evaluation(pictures, towers):
    with pytest.raises(RunError, match=r"12 of 20 samples cannot be used \(12 not a picture\)"):
        pictures(*range(12)).embed(towers)


def test_a_set_of_which_nothing_can_be_read_is_refused(pictures, towers):
    with pytest.raises(RunError, match=r"nothing to evaluate on can be read: .*00000"):
        pictures(*range(20), bad_share=1.0).embed(towers)


def test_equal_texts_have_equal_bits_and_stand_where_they_were(towers):
    texts = ["red square", "blue", "red square", "green", "blue"]
    result = embed_texts(towers, texts, Work(block=2))
    assert torch.equal(result[0], result[2]) and torch.equal(result[1], result[4])
    torch.testing.assert_close(result, towers.encode_texts(towers.tokenize(texts)).detach(), rtol=0, atol=1e-6)


def test_a_class_is_the_mean_of_its_prompts_with_length_one(towers):
    classes = [["a red one", "red"], ["a blue one", "blue"], ["green"]]
    result = embed_classes(towers, classes, Work(block=4))
    needed = embed_texts(towers, classes[1]).mean(0)
    torch.testing.assert_close(result[1], needed / needed.norm())
    assert result.shape == (3, 96)


def test_pictures_without_captions_are_left_out(tmp_path, tars, towers):
    picture = Shards.open(tars(1)).picture(0)
    with TarWriter(str(tmp_path / "some.tar")) as tar:
        for number in range(4):
            tar.write({"__key__": f"{number}", "jpg": picture, "txt": "" if number == 2 else "a picture"})
    pairs = PairSet(Shards.open(str(tmp_path / "some.tar")))
    assert len(pairs.embed(towers)[0]) == 3
    assert dict(pairs.skips.reasons) == {"no caption": 1}
