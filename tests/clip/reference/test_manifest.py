"""cache.json: what was written is read, and what was changed since is refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steering.clip.reference.cache import MANIFEST, Cache, Manifest
from steering.errors import UserError

MINE = Manifest("here/model", {"arch": "a", "weights": "0123"}, 64, 14.25)


@pytest.fixture
def folder(tmp_path):
    Cache.make(tmp_path / "cache", MINE)
    return tmp_path / "cache"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Manifest.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_one_stays(folder):
    assert Manifest.read(folder) == MINE
    with pytest.raises(UserError, match="choose another folder"):
        Cache.make(folder, replace(MINE, ref="there/model"))
    assert Manifest.read(folder) == MINE


def test_the_key_depends_on_all_but_the_name_of_the_model(folder):
    assert replace(MINE, ref="there/model").key == MINE.key
    others = [{"model": {"arch": "b", "weights": "0123"}}, {"width": 32}, {"scale": 14.0}, {"caption_field": "alt"}]
    assert len({MINE.key, *(replace(MINE, **other).key for other in others)}) == 5


@pytest.mark.parametrize("change", [{"scale": 15.0}, {"width": 32}, {"key": "0"}, {"model": None}, {"more": 1}])
def test_a_manifest_that_was_changed_is_refused(folder, change):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "damaged" in refusal(folder)


def test_what_is_no_cache_is_refused(tmp_path, folder):
    assert "is no cache" in refusal(tmp_path)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "another version" in refusal(folder)
    path.write_bytes(b"[1]")
    assert "damaged" in refusal(folder)
