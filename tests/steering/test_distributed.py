"""Talk between ranks, as far as one process can have it."""

import pytest
import torch

from steering import RunError, UserError, distributed


def test_alone_everything_is_ones_own():
    values = torch.randn(3, 2)
    assert distributed.world_size() == 1 and distributed.rank() == 0 and distributed.first_on_node()
    for collective in (
        distributed.all_gather,
        distributed.all_reduce_sum,
        distributed.all_reduce_max,
        distributed.reduce_scatter_sum,
    ):
        assert torch.equal(collective(values), values)


def test_alone_an_error_is_raised_as_it_is():
    def fails():
        raise UserError("no")

    assert distributed.fail_on_all_ranks(lambda: 3) == 3
    with pytest.raises(UserError, match="no") as caught:
        distributed.fail_on_all_ranks(fails)
    assert not caught.value.local


def test_shared_memory_that_is_too_small_is_told_before_anything_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.atomic_files, "allocate", lambda *_: (_ for _ in ()).throw(RunError("no space")))
    with pytest.raises(RunError, match=r"the duals of all samples need 3\.2 GB in .*docker run --shm-size"):
        distributed._claim(tmp_path / "levels", 3_200_000_000)
    assert list(tmp_path.iterdir()) == []
