"""What models are evaluated on, and that several processes find what one does."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from webdataset.writer import TarWriter

from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import EmojiSuite, PairSet, RetrievalSuite, ZeroShotSuite
from steering.clip.models import EMOJI, build
from steering.clip.reference.load import load_reference

WORK = Work(shared=True, block=3)


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return build(EMOJI).eval()


@pytest.fixture
def captioned(tars, tmp_path):
    """Makes a shard of the first pictures with the captions that are given, as a JSON list or as lines."""

    def make(captions: list[list[str]], *, lines: bool = False) -> Shards:
        source = Shards.open(tars(1))
        with TarWriter(str(tmp_path / "captioned.tar")) as tar:
            for number, texts in enumerate(captions):
                reported = {"txt": "\n".join(texts)} if lines else {"json": json.dumps({"caption": texts}).encode()}
                tar.write({"__key__": f"{number:03d}", "jpg": source.picture(number)} | reported)
        return Shards.open(str(tmp_path / "captioned.tar"))

    return make


@pytest.fixture
def folder(tars, tmp_path) -> str:
    """Three classes, one of them without pictures, one with a broken one."""
    source = Shards.open(tars(1, 10, name="classes"))
    for index, kind in enumerate(["red thing", "green thing", "none of these"]):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        for number in range(index, 10 * (index < 2), 2):
            (tmp_path / "kinds" / kind / f"{number}.jpg").write_bytes(source.picture(number))
    (tmp_path / "kinds" / "red thing" / "broken.jpg").write_bytes(b"not a picture")
    return str(tmp_path / "kinds")


@pytest.mark.slow
def test_the_bundled_reference_has_the_numbers_of_the_table():
    result = EmojiSuite().measure(load_reference(f"local-dir:{BUNDLE}"))
    reported = {"held_out": 24.6, "other_vendor": 15.3, "other_held_out": 11.4, "category": 39.5}
    assert {name: round(100 * share.value, 1) for name, share in result.items()} == reported


def test_several_captions_are_all_queries_and_any_of_them_is_an_answer(captioned, towers):
    pairs = PairSet(captioned([["a", "b"], ["c"], ["d", "e", "f"]]))
    images, texts, owner = pairs.embed_all(towers)
    assert (len(images), len(texts), owner.tolist()) == (3, 6, [0, 0, 1, 2, 2, 2])
    result = RetrievalSuite(pairs).measure(towers)
    assert result["i2t_r10"].value == result["t2i_r10"].value == 1.0
    assert (result["i2t_r1"].trials, result["t2i_r5"].trials) == (3, 3)


def test_lines_are_captions_only_where_they_are_said_to_be(captioned):
    shards = captioned([["a red one", "the red one"], ["a blue one"]], lines=True)
    assert PairSet(shards).all_captions == [["a red one\nthe red one"], ["a blue one"]]
    assert PairSet(shards, lines=True).all_captions == [["a red one", "the red one"], ["a blue one"]]


def test_equal_captions_of_two_pictures_share_the_first_place(captioned, towers):
    result = RetrievalSuite(PairSet(captioned([["the same"], ["the same"]]))).measure(towers)
    assert result["i2t_r1"].value == 0.5


def test_one_pair_is_always_found(captioned, towers):
    suite = RetrievalSuite(PairSet(captioned([["alone"]])))
    assert {share.value for share in suite.measure(towers).values()} == {1.0}
    assert all(metric.chance == 1.0 for metric in suite.metrics.values())


def test_a_suite_tells_of_each_of_its_metrics(captioned, folder, towers):
    for suite in (RetrievalSuite(PairSet(captioned([["a"], ["b"]]))), ZeroShotSuite(folder)):
        assert set(suite.metrics) == set(suite.measure(towers))


def measures(data: str, folder: str) -> dict:
    """Everything that is found on the pairs and the classes, and what could not be read, by this process."""
    torch.manual_seed(0)
    towers = build(EMOJI).eval()
    result = {}
    for count in (20, 1):
        suite = RetrievalSuite(PairSet(Shards.open(data), range(count), bad_share=1))
        result[f"{count} pairs"] = {name: asdict(share) for name, share in suite.measure(towers, WORK).items()}
        result[f"{count} pairs, skips"] = [suite.skips.seen, dict(suite.skips.reasons)]
        result[f"{count} pairs, features"] = suite.gallery.embed(towers, WORK)[0].double().sum().item()
    classes = ZeroShotSuite(folder, bad_share=1)
    result["classes"] = {name: asdict(share) for name, share in classes.measure(towers, WORK).items()}
    result["classes, skips"] = dict(classes.skips.reasons)
    return result


def one_rank(index: int, data: str, folder: str, meet: str, ranks: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meet}/meet", rank=index, world_size=ranks)
    Path(f"{meet}/rank{index}.json").write_text(json.dumps(measures(data, folder)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_find_the_same_to_the_last_bit(tars, folder, tmp_path, ranks):
    """Of one pair, too, where most of the ranks have nothing to do."""
    data = tars(1, broken=(4, 11))
    needed = json.loads(json.dumps(measures(data, folder)))
    assert needed["20 pairs, skips"] == [20, {"not a picture": 2}]
    assert needed["classes, skips"] == {"not a picture": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(Path(__file__).parents[3]), *sys.path])  # so that the ranks find this module
        spawn(one_rank, (data, folder, str(tmp_path), ranks), nprocs=ranks)
    for index in range(ranks):
        assert json.loads((tmp_path / f"rank{index}.json").read_text()) == needed
