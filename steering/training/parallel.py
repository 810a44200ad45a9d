"""A target on several processes: whole on each of them (DDP), or each a part of it (FSDP2)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from steering.distributed import all_reduce_sum, world_size


class _Asked(nn.Module):
    """A model whose forward pass is whatever is asked of it: a method of its own, or a parameter, as well."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, question: Callable[..., Any], *more: Any) -> Any:
        return question(self.model, *more)


class Replicated(DistributedDataParallel):
    """A model of which every process has a copy; gradients are averaged while they are found.

    DDP averages the gradients of what its forward pass gave, and of nothing else: ``ask`` makes it that.
    """


def wrap(model: nn.Module, kind: str, device: torch.device | str) -> nn.Module:
    """What to run in place of the model, on every rank at the same time; the model itself with a single process.

    Args:
        model: on its device; ``fsdp`` changes it in place.
        kind: ``ddp`` or ``fsdp``.
        device: of the model.
    """
    if world_size() == 1:
        return model
    if kind == "fsdp":
        return _shard(model, torch.device(device).type)
    return Replicated(_Asked(model), find_unused_parameters=True, gradient_as_bucket_view=True)


def call_wrapped(running: nn.Module, question: Callable[..., Any], *more: Any) -> Any:
    """What ``question(model, *more)`` gives, with gradients that are averaged over ranks.

    Args:
        running: as ``spread`` gives it.
        question: may use all of the model, not its forward pass alone.
        more: further arguments.
    """
    return running(question, *more) if isinstance(running, Replicated) else question(running, *more)


def _shard(model: nn.Module, device: str) -> nn.Module:
    """Every block of the model, and what is left, in parts: gathered when used, their gradients scattered."""
    mesh = init_device_mesh(device, (world_size(),))
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # nothing to cut
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: modules with parts of their own inside a list or a sequence, the outermost."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    parts = [part for module in lists for part in module.children() if not isinstance(part, nn.ModuleList)]
    found = [part for part in parts if len(list(part.children())) and len(list(part.parameters()))]
    inner = {part for block in found for part in block.modules() if part is not block}
    return [block for block in found if block not in inner]


def no_sync(running: nn.Module) -> AbstractContextManager:
    """Within it no gradients are exchanged, because more of them are to come."""
    return running.no_sync() if isinstance(running, Replicated) else nullcontext()


def average_scalar_gradients(model: nn.Module) -> None:
    """Averages over ranks what is left to: gradients of scalars that are on every rank of a sharded model."""
    if not is_sharded(model):
        return
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            parameter.grad.copy_(all_reduce_sum(parameter.grad) / world_size())


def broadcast_buffers(model: nn.Module) -> None:
    """Takes over the first rank's buffers: running means, say, which every rank moves by its own part of a batch."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_state_dict(state: Any) -> Any:
    """The same state with tensors that are in parts made whole, on the CPU; every rank has to ask for it."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()  # one at a time: a GPU need not hold the whole
    if isinstance(state, Mapping):
        return {key: full_state_dict(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(full_state_dict(value) for value in state)
    return state


def load_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a whole state into a model that may be in parts."""
    if not is_sharded(model):
        model.load_state_dict(state)
        return
    like = model.state_dict()
    model.load_state_dict({name: _cut(value, like.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a whole state into an optimiser of a model that may be in parts."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        place: {name: _cut(value, parameters[place]) for name, value in own.items()}
        for place, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def _cut(value: Any, like: Any) -> Any:
    """This rank's part of a tensor shaped like one in parts."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
