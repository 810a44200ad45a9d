"""The manifest on disk: what others wrote there is checked before a byte is read or written for it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from steering.clip.data.manifest import Manifest
from steering.clip.data.shards import Shards
from steering.errors import RunError, UserError


@pytest.fixture
def pattern(tars):
    """Of two shards of 20 pairs that are indexed."""
    pattern = tars()
    Shards.open(pattern)
    return pattern


def folder(pattern) -> Path:
    return Path(pattern).parent / ".steer-index"


def rewrite(pattern, change) -> None:
    path = folder(pattern) / "index.json"
    reported = json.loads(path.read_text())
    change(reported)
    path.write_text(json.dumps(reported))


def assert_damaged(pattern) -> None:
    with pytest.raises(UserError, match=r"index.json is damaged or of another version: steer index --rebuild") as error:
        Shards.open(pattern)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["{}/mine.bin", "../../mine.bin", "offsets-0123456789.bin", None])
def test_a_manifest_that_names_another_file_is_refused_and_the_file_left_alone(tars, tmp_path, name):
    pattern, actual = tars(), tmp_path / "mine.bin"
    actual.write_bytes(b"my own" * 1000)
    folder(pattern).mkdir()
    reported = name.format(tmp_path) if isinstance(name, str) else name
    (folder(pattern) / "index.json").write_text(json.dumps({"version": 1, "offsets": reported, "shards": []}))
    assert_damaged(pattern)
    assert actual.read_bytes() == b"my own" * 1000


@pytest.mark.parametrize("shards", [0, 1])
def test_a_link_in_place_of_the_offsets_is_not_followed(pattern, tmp_path, shards):
    actual = tmp_path / "mine.bin"
    actual.write_bytes(b"my own" * 1000)
    index = next(folder(pattern).glob("offsets-*"))
    index.unlink()
    index.symlink_to(actual)
    rewrite(pattern, lambda reported: reported.update(shards=reported["shards"][:shards]))
    with pytest.raises((UserError, RunError)) as error:
        Shards.open(pattern)
    assert "\n" not in str(error.value) and actual.read_bytes() == b"my own" * 1000


def test_a_link_in_place_of_the_lock_is_not_followed(tars, tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    pattern, actual = tars(), tmp_path / "mine.bin"
    actual.write_bytes(b"my own")
    folder(pattern).mkdir()
    (folder(pattern) / "lock").symlink_to(actual)
    assert Shards.open(pattern).manifest.is_relative_to(tmp_path / "cache") and actual.read_bytes() == b"my own"


@pytest.mark.parametrize(
    ("key", "value"), [("count", -5), ("size", 1.0), ("slot", True), ("first", "1"), ("count", None)]
)
def test_numbers_that_cannot_be_are_refused(pattern, key, value):
    rewrite(pattern, lambda reported: reported["shards"][1].update({key: value}))
    assert_damaged(pattern)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"fault": None},
        {"kinds": ["jpg"]},
        {"head": 1},
        {"paired": "yes"},
        {"name": "000.tar"},
        {"count": 0, "slot": 0},
        {"count": 10**6},
    ],
)
def test_other_rows_that_cannot_be_are_refused(pattern, change):
    rewrite(pattern, lambda reported: reported["shards"][1].update(change))
    assert_damaged(pattern)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 8 * 43)])
def test_offsets_that_lack_are_noticed_when_the_data_are_opened(pattern, harm):
    harm(next(folder(pattern).glob("offsets-*")))
    assert_damaged(pattern)


@pytest.mark.parametrize("change", [(3, -1), (3, 1 << 40), (0, -512), (20, 0)])
def test_offsets_that_leave_the_shard_or_go_back_are_told_when_they_are_first_used(pattern, change):
    index, value = change
    rows = np.memmap(next(folder(pattern).glob("offsets-*")), dtype="<i8", mode="r+")
    rows[index] = value
    rows.flush()
    shards = Shards.open(pattern)
    assert shards.picture(25), "of the other shard"
    with pytest.raises(RunError, match=r"offsets-.*.bin is damaged: steer index --rebuild") as error:
        shards.picture(7)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"fault": "\x1b[31mred\nline"}, {"fault": "x" * 10**6}, {"count": 0, "kinds": None}, {"name": "a\nb.tar"}],
)
def test_what_a_manifest_says_never_leaves_its_line(pattern, change):
    rewrite(pattern, lambda reported: [row.update(change) for row in reported["shards"][:1]])
    rewrite(pattern, lambda reported: reported["shards"][1].update({"fault": "y", "first": 20, "count": 20}))
    with pytest.raises(UserError) as error:
        Shards.open(pattern)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_manifest_is_read_as_it_was_written(pattern):
    first, second = Manifest.read(folder(pattern)).shards.values()
    assert (first.name, first.count, first.first, first.slot) == ("000.tar", 20, 0, 0)
    assert (second.name, second.count, second.first, second.slot) == ("001.tar", 20, 20, 22)
    assert first.head and first.head != second.head and first.paired and first.kinds == ("jpg", "txt")
