import numpy as np
import pytest
import torch

from steering import Batch, UserError
from steering.training import loader as streams
from steering.training.loader import ShuffledLoader
from steering.training.sampler import Permutation, Sampler, Windows


def load(ids: torch.Tensor, generator: torch.Generator) -> Batch:
    return Batch(ids, {"chance": torch.rand(len(ids), generator=generator)})


def ids_of(stream: ShuffledLoader, batches: int) -> list[list[int]]:
    return [next(stream).ids.tolist() for _ in range(batches)]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_an_epoch_shows_every_sample_once_but_for_less_than_a_batch():
    seen = flat(ids_of(ShuffledLoader(load, size=23, batch=5, seed=0), 4))
    assert len(set(seen)) == len(seen) == 20


def test_two_epochs_have_different_orders():
    first, second = ids_of(ShuffledLoader(load, size=8, batch=8, seed=0), 2)
    assert first != second and sorted(first) == sorted(second)


def test_the_order_depends_on_the_seed_alone():
    torch.manual_seed(5)
    one = ids_of(ShuffledLoader(load, size=23, batch=5, seed=3), 9)
    torch.manual_seed(6)
    assert ids_of(ShuffledLoader(load, size=23, batch=5, seed=3), 9) == one
    assert ids_of(ShuffledLoader(load, size=23, batch=5, seed=4), 9) != one


def test_a_larger_batch_is_made_of_the_same_samples():
    small = ids_of(ShuffledLoader(load, size=40, batch=5, seed=0), 8)
    large = ids_of(ShuffledLoader(load, size=40, batch=10, seed=0), 4)
    assert flat(large) == flat(small)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_stream_goes_on_with_the_next_batch(workers):
    stream = ShuffledLoader(load, size=23, batch=5, seed=0)
    batches = [next(stream) for _ in range(9)]
    part = ShuffledLoader(load, size=23, batch=5, seed=0, workers=workers)
    for _ in range(6):
        next(part)
    again = ShuffledLoader(load, size=23, batch=5, seed=0, workers=workers)
    again.load_state_dict(part.state_dict())
    for expected in batches[6:]:
        got = next(again)
        assert got.ids.tolist() == expected.ids.tolist()
        assert torch.equal(got["chance"], expected["chance"])


def test_a_checkpoint_of_another_order_is_refused():
    stream = ShuffledLoader(load, size=23, batch=5, seed=0)
    with pytest.raises(UserError, match="another data order"):
        stream.load_state_dict(ShuffledLoader(load, size=23, batch=5, seed=1).state_dict())


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="a batch of 9 does not fit a training set of 8 samples: use 1 to 8"):
        ShuffledLoader(load, size=8, batch=9, seed=0)


LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 400, 37)]  # unequal shards
SAMPLES = sum(LENGTHS)


def orders() -> list[Sampler]:
    return [Permutation(SAMPLES, seed=3), Windows(LENGTHS, batch=48, seed=3, window=100)]


def run_part(order: Sampler, monkeypatch, state: dict | None, ranks: int, workers: int, batches: int):
    """Some batches on all ranks, one after the other: ids by batch and rank, and the state to go on from."""
    seen, end = [], {}
    for rank in range(ranks):
        monkeypatch.setattr(streams, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(streams, "world_size", lambda: ranks)
        stream = ShuffledLoader(load, order=order, batch=48, seed=3, workers=workers)
        if state is not None:
            stream.load_state_dict(state)
        seen.append(ids_of(stream, batches))
        end = stream.state_dict()
    return [[ids[number] for ids in seen] for number in range(batches)], end


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("workers", [(0, 0, 0), pytest.param((3, 2, 1), marks=pytest.mark.slow)])
def test_an_epoch_that_is_interrupted_twice_on_other_ranks_and_workers_shows_every_sample_once(
    monkeypatch, which, workers
):
    order, state, seen = orders()[which], None, []
    batches = SAMPLES // 48
    for ranks, number, part in zip((4, 3, 8), workers, (40, 50, batches - 90), strict=True):
        part, state = run_part(order, monkeypatch, state, ranks, number, part)
        assert all(len(ids) == 48 // ranks for batch in part for ids in batch)
        seen += [flat(batch) for batch in part]
    assert len(set(flat(seen))) == len(flat(seen)) == batches * 48 > SAMPLES - 48
    assert run_part(orders()[which], monkeypatch, None, 1, 0, batches)[0] == [[ids] for ids in seen]


@pytest.mark.parametrize(("size", "ranks"), [(100, 1), (100, 2), (97, 2), (16 * 6, 2), (111, 4), (20, 1)])
def test_a_sample_is_offered_as_a_stand_in_once_in_an_epoch_however_few_there_are(monkeypatch, size, ranks):
    """Once as one of those that the epoch leaves out or as one of the next batch: to one batch of one rank."""
    order, batches = Permutation(size, seed=0), size // 16
    monkeypatch.setattr(streams, "world_size", lambda: ranks)
    offered = []
    for rank in range(ranks):
        monkeypatch.setattr(streams, "rank", lambda rank=rank: rank)
        stream = ShuffledLoader(
            lambda ids, _, share: offered.append((set(ids.tolist()), share.stand_ins.tolist())) or Batch(ids, {}),
            order=order,
            batch=16,
            seed=0,
            with_share=True,
        )
        ids_of(stream, batches)
    shown = order.ids(0, 0, batches * 16).tolist()
    left_out = order.ids(0, batches * 16, size).tolist()
    every = [number for _, numbers in offered for number in numbers]
    assert sorted(every) == sorted(left_out + (shown if batches > 1 else []))
    assert all(not ids & set(numbers) for ids, numbers in offered)


def test_a_checkpoint_of_grown_data_is_refused_with_what_differs():
    old = ShuffledLoader(load, order=Windows([10, 20], batch=5, seed=0), batch=5, seed=0)
    new = ShuffledLoader(load, order=Windows([10, 20, 7], batch=5, seed=0), batch=5, seed=0)
    with pytest.raises(UserError, match=r"it has size 30, order \w+, this run size 37, order \w+; leave data"):
        new.load_state_dict(old.state_dict())


def test_a_checkpoint_from_before_there_were_orders_is_a_whole_one():
    stream = ShuffledLoader(load, size=23, batch=5, seed=0)
    stream.load_state_dict({"position": 3, "size": 23, "batch": 5, "seed": 0})
    assert stream.position == 3


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"ShuffledLoader needs the number of samples \(size\) or an order"):
        ShuffledLoader(load, batch=5, seed=0)
