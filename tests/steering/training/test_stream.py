import pytest
import torch

from steering import Batch, UserError
from steering.training.stream import Shuffled


def load(ids: torch.Tensor, generator: torch.Generator) -> Batch:
    return Batch(ids, {"chance": torch.rand(len(ids), generator=generator)})


def ids_of(stream: Shuffled, batches: int) -> list[list[int]]:
    return [next(stream).ids.tolist() for _ in range(batches)]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def test_an_epoch_shows_every_sample_once_but_for_less_than_a_batch():
    seen = flat(ids_of(Shuffled(load, size=23, batch=5, seed=0), 4))
    assert len(set(seen)) == len(seen) == 20


def test_two_epochs_have_different_orders():
    first, second = ids_of(Shuffled(load, size=8, batch=8, seed=0), 2)
    assert first != second and sorted(first) == sorted(second)


def test_the_order_depends_on_the_seed_alone():
    torch.manual_seed(5)
    one = ids_of(Shuffled(load, size=23, batch=5, seed=3), 9)
    torch.manual_seed(6)
    assert ids_of(Shuffled(load, size=23, batch=5, seed=3), 9) == one
    assert ids_of(Shuffled(load, size=23, batch=5, seed=4), 9) != one


def test_a_larger_batch_is_made_of_the_same_samples():
    small = ids_of(Shuffled(load, size=40, batch=5, seed=0), 8)
    large = ids_of(Shuffled(load, size=40, batch=10, seed=0), 4)
    assert flat(large) == flat(small)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_stream_goes_on_with_the_next_batch(workers):
    whole = Shuffled(load, size=23, batch=5, seed=0)
    batches = [next(whole) for _ in range(9)]
    part = Shuffled(load, size=23, batch=5, seed=0, workers=workers)
    for _ in range(6):
        next(part)
    again = Shuffled(load, size=23, batch=5, seed=0, workers=workers)
    again.load_state_dict(part.state_dict())
    for expected in batches[6:]:
        got = next(again)
        assert got.ids.tolist() == expected.ids.tolist()
        assert torch.equal(got["chance"], expected["chance"])


def test_a_checkpoint_of_another_order_is_refused():
    stream = Shuffled(load, size=23, batch=5, seed=0)
    with pytest.raises(UserError, match="another data order"):
        stream.load_state_dict(Shuffled(load, size=23, batch=5, seed=1).state_dict())


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="a batch of 9 does not fit a training set of 8 samples: use 1 to 8"):
        Shuffled(load, size=8, batch=9, seed=0)
