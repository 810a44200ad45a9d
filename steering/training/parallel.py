"""A target on several processes: whole on each of them (DDP), or each a part of it (FSDP2)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from steering.distributed import all_reduce_sum, world_size

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class _Calling(nn.Module):
    """A model whose forward pass is any function of it: DDP averages gradients of what that gives, and no others."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


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
    return DistributedDataParallel(_Calling(model), find_unused_parameters=True, gradient_as_bucket_view=True)


def call_wrapped(wrapped: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function(model, *arguments)`` gives, with gradients that are averaged over ranks.

    Args:
        wrapped: as ``wrap`` gives it.
        function: may use all of the model, not its forward pass alone.
        arguments: further ones.
    """
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped(function, *arguments)
    return function(wrapped, *arguments)


def _shard(model: nn.Module, device: str) -> nn.Module:
    """Every block of the model, and what is left, in shards: gathered when used, their gradients scattered."""
    mesh = init_device_mesh(device, (world_size(),))
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # nothing to shard
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: modules with parts of their own inside a list or a sequence, the outermost."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    children = [child for module in lists for child in module.children() if not isinstance(child, nn.ModuleList)]
    blocks = [child for child in children if len(list(child.children())) and len(list(child.parameters()))]
    inner = {module for block in blocks for module in block.modules() if module is not block}
    return [block for block in blocks if block not in inner]


def no_sync(wrapped: nn.Module) -> AbstractContextManager:
    """Within it no gradients are exchanged, because more of them are to come."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()


def average_scalar_gradients(model: nn.Module) -> None:
    """Averages over ranks what FSDP2 does not: gradients of scalars, which are on every rank of a sharded model."""
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


def full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """States of a model and its optimiser by parameter name, whole and on the CPU, on the first rank.

    Every rank has to ask for them; the others get empty ones.
    """
    # An optimiser without a state would be given one by a step with gradients of zero, which moves Adam's bias.
    state = get_optimizer_state_dict(model, optimizer, options=_FULL) if optimizer.state else {}
    return {"model": get_model_state_dict(model, options=_FULL), "optimizer": state}


def load_full_state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads on every rank what ``full_state_dict`` gave, on any number of ranks."""
    sharded = is_sharded(model)
    if state["optimizer"]:
        # Not strict: a parameter that no loss depends on has no state. Before the model, because it takes a step.
        options = StateDictOptions(full_state_dict=sharded, strict=False)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    set_model_state_dict(model, state["model"], options=StateDictOptions(full_state_dict=sharded))


def copy_sharded(sharded: nn.Module, model: nn.Module) -> None:
    """Copies the weights and buffers of a sharded model into a whole one, on every rank at the same time."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, get_model_state_dict(sharded, options=_FULL), options=options)
