"""Features in files: what is read is what was written, and what cannot be trusted counts as not there."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.nn import functional as F

from steering.clip.data.manifest import Shard
from steering.clip.reference.cache import MANIFEST, Cache, Manifest, _checksum, open_caches
from steering.errors import UserError

WIDTH = 64


def tar(name: str, *, count: int = 20, head: str = "") -> Shard:
    return Shard(name, "", 10240, count, head=head)


ONE, OTHER = tar("data/000.tar"), tar("data/001.tar")


@pytest.fixture
def manifest():
    return Manifest("here/model", {"arch": "a", "weights": "0123"}, WIDTH, 14.25)


def features(count: int = 20) -> torch.Tensor:
    return F.normalize(torch.randn(count, 2, WIDTH), dim=-1)


@pytest.fixture
def cache(tmp_path, manifest):
    """With features of ONE, whose sample 3 cannot be read; OTHER has none."""
    cache = Cache.make(tmp_path / "cache", manifest)
    present = torch.ones(20, dtype=torch.bool)
    present[3] = False
    cache.write(ONE, features() * present[:, None, None], present, {"broken picture": 1})
    return cache


def again(cache: Cache) -> Cache:
    """As another process finds it."""
    return Cache.open(cache.folder, ref="here/model")


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rounding_to_half_precision_changes_a_similarity_by_less_than_a_fivehundredth(tmp_path, manifest):
    """Each of two rows of length one is off by at most 2^-11 of its entries, and as much again in length."""
    cache, exact = Cache.make(tmp_path, manifest), features()
    cache.write(ONE, exact, torch.ones(20, dtype=torch.bool), {})
    result, present = again(cache).look_up([(ONE, index) for index in range(20)])
    assert present.all() and result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(20, 2))
    error = (result[:, 0] @ result[:, 1].T - exact[:, 0] @ exact[:, 1].T).abs().max()
    assert 0 < error < 4 * 2**-11


def test_rows_come_in_the_order_asked_for_and_absent_ones_are_zero(cache):
    result, present = cache.look_up([(ONE, 7), (OTHER, 7), (ONE, 3), (ONE, 0)])
    assert present.tolist() == cache.present([(ONE, 7), (OTHER, 7), (ONE, 3), (ONE, 0)]).tolist()
    assert present.tolist() == [True, False, False, True]
    rows = cache.rows(ONE)
    assert rows is not None and not result[[1, 2]].any()
    torch.testing.assert_close(result[[0, 3]], F.normalize(rows.features[[7, 0]].float(), dim=-1), rtol=0, atol=0)


def test_a_file_holds_two_rows_of_two_bytes_a_pair_and_says_why_samples_are_absent(cache):
    rows = cache.rows(ONE)
    assert rows is not None and rows.features.nbytes == 20 * 2 * WIDTH * 2
    assert cache.reasons(ONE) == {"broken picture": 1} and cache.reasons(OTHER) is None


def test_a_flipped_bit_makes_a_file_missing_wherever_it_is(cache, capsys):
    """All through the head, whose last bytes are padding, and in the features and the presence behind it."""
    path = cache.path(ONE)
    full = path.read_bytes()
    head = 8 + int.from_bytes(full[:8], "little")
    for index in [*range(0, len(full[:head].rstrip()), 5), head + 1, len(full) - 700, len(full) - 1]:
        data = bytearray(full)
        data[index] ^= 0x04
        path.write_bytes(data)
        result = again(cache)
        assert result.rows(ONE) is None and result.faults.total() == 1, index
        assert path.name in capsys.readouterr().err
    path.write_bytes(full)
    assert again(cache).rows(ONE) is not None


def forge(cache: Cache, change, reasons: str = "{}") -> None:
    """What another program may write: a file of ONE with other features and reasons, and the right checksum."""
    path = cache.path(ONE)
    with safe_open(path, framework="pt") as file:
        expected, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in ("features", "present")}
    change(tensors["features"])
    path.write_bytes(save(tensors, expected | {"reasons": reasons, "checksum": _checksum(tensors, reasons)}))


@pytest.mark.parametrize("reasons", ["[1, 2]", '{"a": -1}', '{"a": true}', "[" * 9999])
def test_a_file_whose_account_of_absent_samples_is_none_is_faulty(cache, reasons):
    forge(cache, lambda rows: None, reasons)
    assert again(cache).reasons(ONE) is None and again(cache).fault(ONE) == "damaged"
    assert not again(cache).present([(ONE, 0)]).any()


def test_features_that_are_not_finite_are_not_stored(cache):
    odd = features()
    odd[5, 0, 1], odd[7, 1, 0], odd[3] = float("nan"), float("inf"), float("nan")
    present = torch.ones(20, dtype=torch.bool)
    present[3] = False
    cache.write(ONE, odd, present, {"broken picture": 1})
    result, there = again(cache).look_up([(ONE, index) for index in range(20)])
    assert [index for index in range(20) if not there[index]] == [3, 5, 7]
    assert not result[[3, 5, 7]].any() and result.isfinite().all()
    assert again(cache).reasons(ONE) == {"broken picture": 1, "not finite": 2}


def test_features_in_a_file_that_are_not_finite_are_not_there(cache):
    forge(cache, lambda rows: rows[5, 0].fill_(float("nan")))
    indices = [(ONE, index) for index in (4, 5)]
    result, there = again(cache).look_up(indices)
    assert there.tolist() == again(cache).present(indices).tolist() == [True, False]
    assert result[0].any() and not result[1].any()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_file_cut_short_is_missing(cache, keep):
    path = cache.path(ONE)
    path.write_bytes(path.read_bytes()[:keep])
    assert again(cache).fault(ONE) == "damaged" and not again(cache).present([(ONE, 0)]).any()


@pytest.mark.parametrize(
    "shard, fault",
    [
        (replace(ONE, size=20480), "made of a shard that was another one then"),
        (replace(ONE, count=19), "damaged"),
    ],
)
def test_features_of_a_shard_that_has_changed_are_missing(cache, shard, fault):
    assert cache.fault(shard) == fault and cache.rows(shard) is None


def test_another_shard_of_the_same_name_and_size_does_not_get_the_features_of_the_first(tmp_path, manifest):
    first, other, unknown = (tar("000.tar", head=head) for head in ("0123", "4567", ""))
    cache = Cache.make(tmp_path / "cache", manifest)
    cache.write(first, features(), torch.ones(20, dtype=torch.bool), {})
    for shard in (first, unknown):
        assert again(cache).present([(shard, 3)]).all() and again(cache).reasons(shard) is not None
    assert not again(cache).present([(other, 3)]).any() and again(cache).reasons(other) is None


def test_a_file_moved_in_from_another_models_cache_is_missing(cache, tmp_path, manifest):
    other = Cache.make(tmp_path / "other", replace(manifest, model={"arch": "a", "weights": "4567"}))
    other.write(ONE, features(), torch.ones(20, dtype=torch.bool), {})
    other.path(ONE).replace(cache.path(ONE))
    assert again(cache).fault(ONE) == "of another model" and cache.reasons(ONE) is None


def test_a_file_under_another_shards_name_is_missing(cache):
    cache.path(OTHER).write_bytes(cache.path(ONE).read_bytes())
    assert cache.rows(OTHER) is None


def test_faults_are_told_once_a_kind_and_counted(cache, capsys):
    for shard in (ONE, OTHER):
        cache.path(shard).write_bytes(b"rubbish")
    for _ in range(3):
        cache.look_up([(ONE, 0), (OTHER, 0)])
    assert capsys.readouterr().err.count("\n") == 1 and cache.faults == {"damaged": 2}


def test_shards_of_one_name_in_two_folders_have_two_files(cache):
    names = ["a/000.tar", "b/000.tar", "a_000.tar", "a/000", "../000.tar", "é/0 0.tar", "x" * 300, "\u5199" * 83]
    paths = [cache.path(tar(name)) for name in names]
    assert len(set(paths)) == len(names)
    assert all(path.parent == cache.folder / "shards" and len(os.fsencode(path.name)) < 120 for path in paths)


@pytest.mark.parametrize("name", ["\u5199" * 83 + ".tar", os.fsdecode(b"\xff/\xfe.tar"), "a\nb.tar"])
def test_features_of_a_shard_with_any_name_are_found_again(cache, name):
    shard = tar(name)
    cache.write(shard, features(), torch.ones(20, dtype=torch.bool), {"no caption": 0})
    assert again(cache).present([(shard, 3)]).all() and again(cache).reasons(shard) is not None
    cache.path(OTHER).write_bytes(cache.path(shard).read_bytes())
    assert again(cache).fault(OTHER) == "of another shard"


def test_another_models_cache_is_refused_in_one_line(cache, manifest):
    assert "--ref 'here/model'" in refusal(lambda: Cache.open(cache.folder, ref="there/model"))
    other = replace(manifest, model={"arch": "a", "weights": "4567"})
    assert "choose another folder" in refusal(lambda: Cache.make(cache.folder, other))
    assert "choose another folder" in refusal(lambda: Cache.make(cache.folder, replace(manifest, ref="there/model")))


def test_a_cache_of_other_captions_is_refused(cache):
    assert "captions" in refusal(lambda: Cache.open(cache.folder, ref="here/model", caption_field="alt"))


def test_a_cache_without_some_shards_is_told_and_used(cache, capsys):
    (result,) = open_caches([str(cache.folder)], ["here/model"], [ONE, OTHER, tar("faulty.tar", count=0)], None)
    assert result is not None and "lacks 1 of 2 shards (data/001.tar say)" in capsys.readouterr().err
    assert "1 caches are given for 2 references" in refusal(lambda: open_caches(["x"], ["a", "b"], [ONE], None))


def test_few_maps_are_enough_for_many_shards(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr("steering.clip.reference.cache.MOST_OPEN", 2)
    cache, shards = Cache.make(tmp_path, manifest), [tar(f"{i}.tar") for i in range(5)]
    for shard in shards:
        cache.write(shard, features(), torch.ones(20, dtype=torch.bool), {})
    indices = [(shard, 1) for shard in shards]
    first, later = cache.look_up(indices)[0], cache.look_up(indices)[0]
    assert torch.equal(first, later) and len(cache._rows) == 2


def test_the_key_depends_on_all_but_the_name_of_the_model(manifest):
    assert replace(manifest, ref="there/model").key == manifest.key
    others = [{"model": {"arch": "b", "weights": "0123"}}, {"width": 32}, {"scale": 14.0}, {"caption_field": "alt"}]
    assert len({manifest.key, *(replace(manifest, **other).key for other in others)}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 15.0}, "damaged"),
        ({"width": 32}, "damaged"),
        ({"key": "0"}, "damaged"),
        ({"model": None}, "damaged"),
        ({"more": 1}, "damaged"),
        ({"format": 99}, "another version"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(cache, change, message):
    path = cache.folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in refusal(lambda: Manifest.read(cache.folder))


def test_what_is_no_cache_is_refused(tmp_path, cache):
    assert "is no cache" in refusal(lambda: Manifest.read(tmp_path))
    (cache.folder / MANIFEST).write_bytes(b"[1]")
    assert "damaged" in refusal(lambda: Manifest.read(cache.folder))
