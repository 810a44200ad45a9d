"""The reference in training: what is in its cache comes from there, what is not from the model."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from steering import Pairs
from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE, emoji_shard
from steering.clip.models import build, export
from steering.clip.reference import model
from steering.clip.reference.cache import Cache, Manifest
from steering.clip.reference.ensemble import Ensemble
from steering.clip.reference.fill_cache import fill
from steering.clip.reference.load import load_reference
from steering.clip.reference.model import encode, names
from steering.clip.task import Clip
from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.task import Batch

BUNDLED = f"local-dir:{BUNDLE}"
IDS = torch.tensor([41, 3, 25, 58, 20, 0])  # of all three shards of 20


@pytest.fixture
def data(tars):
    return tars(3)


@pytest.fixture
def filled(data, tmp_path):
    """Fills a cache of the data; without one shard's file if so asked."""

    def fill_one(ref: str = BUNDLED, folder: str = "features", *, without: int | None = None) -> str:
        towers, shards = load_reference(ref), Shards.open(data)
        cache = Cache.make(tmp_path / folder, Manifest.of(towers, ref=ref))
        fill(cache, towers, shards)
        if without is not None:
            cache.path(shards.index[without]).unlink()
        return str(cache.folder)

    return fill_one


@pytest.fixture
def other(tmp_path) -> str:
    """A second reference, of another temperature."""
    torch.manual_seed(5)
    return f"local-dir:{export(build('emoji-rn32', temperature=0.05), tmp_path / 'other')}"


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Names of the references whose weights were loaded."""
    loaded = []
    monkeypatch.setattr(model, "load_reference", lambda ref: (loaded.append(ref), load_reference(ref))[1])
    return loaded


def task(data, ref=BUNDLED, cache=None) -> Clip:
    return Clip(data=data, val=str(emoji_shard("held_out_twitter")), model="emoji-rn32", ref=ref, cache=cache)


def batch(ids=IDS) -> Batch:
    return Batch(ids, {})


def features(task: Clip, ids=IDS) -> torch.Tensor:
    """What the reference says, ``[n, 2, width]``."""
    values = task.losses(task.reference().eval(), batch(ids)).values
    assert isinstance(values, Pairs)
    return torch.stack([values.left, values.right], 1)


def test_a_complete_cache_trains_without_the_models_weights(data, filled, loads, tmp_path):
    full = task(data, cache=filled())
    expected = ReferenceLosses(full, folder=tmp_path / "losses")
    cached = expected(batch()).values
    assert isinstance(cached, Pairs) and loads == []
    plain = task(data).losses(task(data).reference(), batch()).values
    assert isinstance(plain, Pairs) and cached.scale == pytest.approx(plain.scale)
    assert (cached.similarities() - plain.similarities()).abs().max() < 4 * 2**-11
    assert not (tmp_path / "losses").exists(), "what is in files is not kept twice"


def test_a_model_that_was_only_evaluated_takes_no_memory_in_training(data, filled, loads):
    full = task(data, cache=filled())
    model = full.reference()
    assert full.evaluate(model) == task(data).evaluate(task(data).reference())
    assert loads[0] == BUNDLED and not list(model.parameters())


def test_rows_that_a_cache_lacks_are_computed_and_the_others_are_not(data, filled, loads, capsys):
    folder = filled(without=1)
    result = features(task(data, cache=folder))
    assert loads == [BUNDLED] and "lacks 1 of 3 shards" in capsys.readouterr().err
    missing = (IDS >= 20) & (IDS < 40)
    assert torch.equal(result[missing], features(task(data), IDS[missing])), "the very features of the model"
    cache, shards = Cache.open(Path(folder), ref=BUNDLED), Shards.open(data)
    held, present = cache.look_up([shards.locate(number) for number in IDS.tolist()])
    assert torch.equal(present, ~missing) and torch.equal(result[present], held[present])


def test_only_what_was_computed_is_remembered(data, filled, tmp_path):
    partial = task(data, cache=filled(without=1))
    expected = ReferenceLosses(partial, folder=tmp_path / "losses")
    first, second = expected(batch()).values, expected(batch()).values
    assert isinstance(first, Pairs) and isinstance(second, Pairs)
    assert torch.equal(first.left, second.left) and torch.equal(first.right, second.right)
    assert expected._records()[0].present(IDS).tolist() == [False, False, True, False, True, False]


def test_a_model_that_has_changed_since_its_cache_was_filled_is_refused(data, filled, other):
    folder = filled(other, without=1)
    export(build("emoji-rn32", temperature=0.05), Path(other.removeprefix("local-dir:")))
    changed = task(data, ref=other, cache=folder)
    features(changed, torch.tensor([1, 2]))  # of the cache alone: nothing can be noticed
    with pytest.raises(UserError, match=r"^\S+ holds features of another model than local-dir:\S+ is now: [^\n]+$"):
        features(changed)
    with pytest.raises(UserError, match="another model"):
        changed.evaluate(changed.reference())


def test_another_references_cache_is_refused(data, filled, other):
    with pytest.raises(UserError, match=r"holds features of --ref 'local-dir:[^\n]+$"):
        task(data, ref=other, cache=filled()).reference()


def test_two_references_average_their_similarities(data, other):
    both, one, two = (features(task(data, ref=ref)) for ref in (f"{BUNDLED} + {other}", BUNDLED, other))
    mean = (one[:, 0] @ one[:, 1].T + two[:, 0] @ two[:, 1].T) / 2
    torch.testing.assert_close(both[:, 0] @ both[:, 1].T, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(len(IDS), 2))


def test_of_two_references_only_the_one_with_gaps_is_loaded(data, filled, other, loads):
    caches = f"{filled()} + {filled(other, 'others', without=2)}"
    result = features(task(data, ref=f"{BUNDLED} + {other}", cache=caches))
    assert loads == [other]
    online = features(task(data, ref=f"{BUNDLED} + {other}"))
    assert (result[:, 0] @ result[:, 1].T - online[:, 0] @ online[:, 1].T).abs().max() < 4 * 2**-11


def test_the_scale_of_two_references_is_the_mean_of_theirs(data, filled, other):
    one, two = (math.exp(float(load_reference(ref).clip.logit_scale)) for ref in (BUNDLED, other))
    for cache in (None, f"{filled()} + {filled(other, 'others')}"):
        model = task(data, ref=f"{BUNDLED} + {other}", cache=cache).reference()
        assert float(model(batch()).scale) == pytest.approx((one + two) / 2)


def test_two_references_are_evaluated_as_one(data, other):
    both = task(data, ref=f"{BUNDLED} + {other}")
    model = both.reference()
    assert isinstance(model.towers, Ensemble) and set(both.evaluate(model)) == set(both.metrics)


def test_a_reference_without_a_cache_is_loaded_at_once_so_that_a_wrong_name_is_told(data):
    with pytest.raises(UserError, match="no/such/model"):
        task(data, ref="./no/such/model").reference()


@pytest.mark.parametrize("joined", ["A + ", " + A", "A +  + B"])
def test_a_name_left_out_of_a_sum_is_told(joined):
    assert names("A + local-dir:b+c") == ["A", "local-dir:b+c"]
    with pytest.raises(UserError, match="joined as A"):
        names(joined)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_features_on_cuda_are_of_length_one_and_close_to_those_in_full_precision():
    towers = load_reference(BUNDLED)
    images, tokens = torch.randn(8, 3, 32, 32), towers.tokenize(["a cat"] * 8)
    exact = encode(towers, images, tokens)
    half = encode(towers.cuda(), images, tokens).cpu()
    torch.testing.assert_close(half.norm(dim=-1), torch.ones(8, 2))
    assert half.dtype == torch.float32 and F.cosine_similarity(half, exact, dim=-1).min() > 0.99
