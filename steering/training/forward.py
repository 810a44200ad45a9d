"""Losses of a batch and their gradient, in as many parts as memory asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from steering.contrastive.pairs import Pairs
from steering.distributed import rank
from steering.settings import Recipe
from steering.task import Batch, Losses, Task
from steering.training import seeds
from steering.training.parallel import call_wrapped, no_sync

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Runs a model on a batch, whole or part by part, with one and the same gradient.

    The weights of a steered loss depend on all losses of a batch, so these come first; then the loss is steered and
    differentiated by what the model gave (losses and answers, or features of Pairs), and that gradient is carried into
    the model. A batch in parts goes through the model without gradient first, and every part is run again to carry its
    share (Gao et al. 2021). Both runs of a part draw the same random numbers. A model that looks at the whole batch, as
    batch norm does, sees the parts.

    Args:
        task: whose losses these are.
        model: the target, or what runs it on several processes.
        recipe: its ``micro_batch`` and ``precision``.
        seed: of what the model draws.
    """

    def __init__(self, task: Task, model: nn.Module, recipe: Recipe, seed: int):
        self.task, self.model, self.recipe, self.seed = task, model, recipe, seed

    def __call__(self, batch: Batch, step: int) -> tuple[Losses, Callable[[Tensor], None]]:
        """Losses of the batch, and what takes a loss made of them back into the model's gradients."""
        places = torch.arange(len(batch)).split(self.recipe.micro_batch or len(batch))
        if len(places) == 1:
            parts, first = [batch], [self._run(batch, step, 0)]
        else:
            parts = [batch.take(some) for some in places]
            with torch.no_grad(), _unchanged(self.model):
                first = [self._run(part, step, number) for number, part in enumerate(parts)]
        losses = _leaves(first)

        def backward(loss: Tensor) -> None:
            loss.backward()
            gradients = [_filled(x) for x in _outputs(losses)]
            for number, part in enumerate(parts):
                last = number == len(parts) - 1
                with nullcontext() if last else no_sync(self.model):
                    found = first[0] if len(parts) == 1 else self._run(part, step, number)
                    shares = [_part(g, places[number], first=number == 0) for g in gradients]
                    pairs = zip(_outputs(found), shares, strict=True)
                    wanted = [(x, share) for x, share in pairs if x.requires_grad]
                    torch.autograd.backward([x for x, _ in wanted], [share for _, share in wanted])

        return losses, backward

    def _run(self, part: Batch, step: int, number: int) -> Losses:
        seeds.seed_everything(seeds.derive(self.seed, "step", step, rank(), number))  # so there is no state to save
        with autocast(self.recipe, part.ids.device):
            return call_wrapped(self.model, self.task.losses, part)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's precision for what a model computes."""
    half = HALF.get(recipe.precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers, such as running means, leave this block as they entered it: the parts are run once more."""
    kept = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, old in zip(model.buffers(), kept, strict=True):
        buffer.copy_(old)


def _outputs(losses: Losses) -> list[Tensor]:
    """What has a gradient: losses and answers, or features and scale."""
    values = losses.values
    if not isinstance(values, Pairs):
        return [values, *([] if losses.outputs is None else [losses.outputs])]
    return [values.left, values.right, *([values.scale] if isinstance(values.scale, Tensor) else [])]


def _leaves(parts: list[Losses]) -> Losses:
    """The parts as one, with leaves that take a gradient."""
    mask = None if parts[0].mask is None else torch.cat([part.mask for part in parts if part.mask is not None])
    joined = [torch.cat(some).detach() if some[0].dim() else some[0].detach() for some in _columns(parts)]
    leaves = [x.requires_grad_() for x in joined]
    first = parts[0].values
    if not isinstance(first, Pairs):
        return Losses(leaves[0], mask, *leaves[1:])
    return Losses(Pairs(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else first.scale), mask)


def _columns(parts: list[Losses]) -> list[tuple[Tensor, ...]]:
    return list(zip(*map(_outputs, parts), strict=True))


def _filled(leaf: Tensor) -> Tensor:
    """The gradient of a leaf; zeros where no loss asked for it, for every process waits for all gradients."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _part(gradient: Tensor, places: Tensor, *, first: bool) -> Tensor:
    """A part's share of a gradient: its rows, and of a scalar all for the first part."""
    if gradient.dim() == 0:
        return gradient if first else torch.zeros_like(gradient)
    return gradient[places.to(gradient.device)]
