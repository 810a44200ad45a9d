"""All talk between ranks: who am I, how many are we, and everyone's rows in one tensor."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from steering import atomic_files
from steering.errors import Elsewhere, RunError, UserError

SHARED = Path("/dev/shm")  # memory with names
Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes that train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def communication_device() -> torch.device:
    """Where tensors must lie to be exchanged."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def barrier() -> None:
    """Waits for every rank."""
    if world_size() > 1:
        dist.barrier()


def first_on_node() -> bool:
    """Whether this is the first of the processes that share this machine's memory."""
    return int(os.environ.get("LOCAL_RANK", rank())) == 0


def node_shared_memory(size: int, dtype: torch.dtype) -> Tensor:
    """Memory that all processes of a machine share, ``[size]`` zeros; freed when the last of them ends.

    Every rank has to ask for it at the same time.
    """
    if world_size() == 1:
        return torch.zeros(size, dtype=dtype)
    number = torch.tensor(int.from_bytes(os.urandom(6)) if rank() == 0 else 0, device=communication_device())
    number = all_reduce_sum(number)  # one name for all
    path = SHARED / f"steering-{int(number):x}"
    fail_on_all_ranks(lambda: _claim(path, size * dtype.itemsize) if first_on_node() else None)
    memory = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
    dist.barrier()  # everyone has opened it
    if first_on_node():
        path.unlink(missing_ok=True)
    return memory


def _claim(path: Path, size: int) -> None:
    """Takes the space at once: a process that runs out of it later would be ended without a word."""
    try:
        atomic_files.allocate(path, size)
    except RunError as error:
        path.unlink(missing_ok=True)
        room = shutil.disk_usage(path.parent).free
        raise RunError(
            f"the duals of all samples need {size / 1e9:.1f} GB in {path.parent}, which has {room / 1e9:.1f}: give "
            f"the container more shared memory (docker run --shm-size), or use a gamma of 1"
        ) from error


def fail_on_all_ranks(action: Callable[[], Result]) -> Result:
    """Does something that can fail on one rank alone; then all fail, instead of waiting for it for ever.

    Raises:
        UserError, RunError: this rank's own, marked ``local``.
        Elsewhere: another rank's.
    """
    if world_size() == 1:
        return action()
    trouble, result = None, None
    try:
        result = action()
    except (UserError, RunError) as error:
        trouble = error
    failed = int(all_reduce_sum(torch.tensor(float(trouble is not None), device=communication_device())))
    if trouble is not None:
        trouble.local = True
        raise trouble
    if failed:
        raise Elsewhere("another process of this run failed and says why")
    return cast(Result, result)


def all_gather(values: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of every rank, in rank order, ``[n, ...] -> [world * n, ...]``.

    Args:
        values: of this rank. A gradient flows to its owner where all ranks hold the same number of rows.
        sizes: how many rows each rank holds, 0 included; None where all hold the same number.
    """
    if world_size() == 1:
        return values
    if sizes is None or len(set(sizes)) == 1:
        return _Gather.apply(values) if values.requires_grad else _all_gather(values)  # type: ignore[return-value]
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = _all_gather(padded).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """A few whole numbers of every rank, in rank order: sizes, say, before tensors of unlike sizes are exchanged."""
    if world_size() == 1:
        return [list(numbers)]
    return _all_gather(torch.tensor([numbers], device=communication_device())).tolist()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over ranks of a detached tensor, the same on every rank."""
    if world_size() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
    return values


def all_reduce_max(values: Tensor) -> Tensor:
    """Largest over ranks of a detached tensor, the same on every rank."""
    if world_size() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def reduce_scatter_sum(values: Tensor) -> Tensor:
    """Own rows of the sum over ranks, ``[world * n, ...] -> [n, ...]``, of a detached tensor."""
    if world_size() == 1:
        return values
    own = values.new_empty(len(values) // world_size(), *values.shape[1:])
    dist.reduce_scatter_tensor(own, values.contiguous())
    return own


def _all_gather(values: Tensor) -> Tensor:
    everyone = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(everyone, values.contiguous())
    return torch.cat(everyone)


class _Gather(torch.autograd.Function):
    """Gather whose backward adds up what every rank's loss says about one's own rows."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return _all_gather(values)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        summed = all_reduce_sum(gradients[0])
        return summed[rank() * ctx.rows : (rank() + 1) * ctx.rows]
