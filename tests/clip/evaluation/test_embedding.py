"""Features of pictures and texts: in any blocks, from any processes, and what cannot be read counted once."""

from pathlib import Path

import pytest
import torch
from webdataset.writer import TarWriter

from steering import RunError
from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import PictureSet, Work, embed_classes, embed_texts
from steering.clip.evaluation.suites import PairPictures, PairSet
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
    some = pictures(3, 17)
    found = some.embed(towers)
    assert some.usable == [place for place in range(20) if place not in (3, 17)]
    one_by_one = [towers.encode_images(towers.preprocess(some.source.load(place))[None]) for place in some.usable]
    torch.testing.assert_close(found, torch.cat(one_by_one).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("work", [Work(block=3), Work(block=1), pytest.param(Work(workers=2), marks=pytest.mark.slow)])
def test_blocks_and_processes_change_no_feature(pictures, towers, work):
    some = pictures(3)
    torch.testing.assert_close(some.embed(towers, work), some.embed(towers), rtol=0, atol=1e-6)


def test_what_cannot_be_read_is_counted_once_however_often_it_is_asked_for(pictures, towers):
    some = pictures(3, 17)
    assert some.usable and some.usable
    for _ in range(2):
        some.embed(towers)
    assert (some.skips.seen, dict(some.skips.reasons)) == (20, {"not a picture": 2})
    assert "00003" in some.skips.examples[0]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_shard_that_disappears_is_told_in_one_line(pictures, towers, workers):
    some = pictures()
    url = some.source.shards.index[0].url
    Path(url).unlink()
    with pytest.raises(RunError) as error:
        some.embed(towers, Work(workers=workers))
    assert str(error.value) == f"{url} could not be read: No such file or directory"


def test_a_second_evaluation_reads_no_picture_again(pictures, towers, monkeypatch):
    some = pictures(3)
    first = some.embed(towers)
    monkeypatch.setattr(PairPictures, "load", lambda self, place: pytest.fail("read again"))
    assert torch.equal(some.embed(towers), first)
    assert len(some.usable) == 19


def test_too_many_broken_pictures_end_the_evaluation(pictures, towers):
    with pytest.raises(RunError, match=r"12 of 20 samples cannot be used \(12 not a picture\)"):
        pictures(*range(12)).embed(towers)


def test_a_set_of_which_nothing_can_be_read_is_refused(pictures, towers):
    with pytest.raises(RunError, match=r"nothing to evaluate on can be read: .*00000"):
        pictures(*range(20), bad_share=1.0).embed(towers)


def test_equal_texts_have_equal_bits_and_stand_where_they_were(towers):
    texts = ["red square", "blue", "red square", "green", "blue"]
    found = embed_texts(towers, texts, Work(block=2))
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[4])
    torch.testing.assert_close(found, towers.encode_texts(towers.tokenize(texts)).detach(), rtol=0, atol=1e-6)


def test_a_class_is_the_mean_of_its_prompts_with_length_one(towers):
    classes = [["a red one", "red"], ["a blue one", "blue"], ["green"]]
    found = embed_classes(towers, classes, Work(block=4))
    wanted = embed_texts(towers, classes[1]).mean(0)
    torch.testing.assert_close(found[1], wanted / wanted.norm())
    assert found.shape == (3, 96)


def test_pictures_without_captions_are_left_out(tmp_path, tars, towers):
    picture = Shards.open(tars(1)).picture(0)
    with TarWriter(str(tmp_path / "some.tar")) as tar:
        for number in range(4):
            tar.write({"__key__": f"{number}", "jpg": picture, "txt": "" if number == 2 else "a picture"})
    pairs = PairSet(Shards.open(str(tmp_path / "some.tar")))
    assert len(pairs.embed(towers)[0]) == 3
    assert dict(pairs.skips.reasons) == {"no caption": 1}
