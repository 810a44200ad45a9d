"""Losses of a batch and their gradient, in as many parts as memory asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steering.collect import rank
from steering.pairs import Pairs
from steering.recipe import Recipe
from steering.task import Batch, Losses, Task
from steering.training import seeds

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Runs a model on a batch, whole or part by part, with one and the same gradient.

    The weights of a steered loss depend on all losses of a batch, so these come first, without gradient; then the loss
    is steered and differentiated by what the model gave (losses, or features of Pairs), and every part is run again
    to carry that gradient into the model (Gao et al. 2021). Both runs of a part draw the same random numbers. A model
    that looks at the whole batch, as batch norm does, sees the parts.

    Args:
        task: whose losses these are.
        model: the target.
        recipe: its ``micro_batch`` and ``precision``.
        seed: of what the model draws.
    """

    def __init__(self, task: Task, model: nn.Module, recipe: Recipe, seed: int):
        self.task, self.model, self.recipe, self.seed = task, model, recipe, seed

    def __call__(self, batch: Batch, step: int) -> tuple[Losses, Callable[[Tensor], None]]:
        """Losses of the batch, and what takes the steered loss back into the model's gradients."""
        size = self.recipe.micro_batch or len(batch)
        places = torch.arange(len(batch)).split(size)
        if len(places) == 1:
            losses = self._run(batch, step, 0)
            return losses, lambda loss: loss.backward()
        parts = [batch.take(some) for some in places]
        with torch.no_grad(), _unchanged(self.model):
            known = [self._run(part, step, number) for number, part in enumerate(parts)]
        losses = _joined(known)

        def backward(loss: Tensor) -> None:
            loss.backward()
            whole = _outputs(losses)
            for number, part in enumerate(parts):
                outputs = _outputs(self._run(part, step, number))
                gradients = [_part(x.grad, places[number], first=number == 0) for x in whole]
                wanted = [(x, g) for x, g in zip(outputs, gradients, strict=True) if g is not None and x.requires_grad]
                torch.autograd.backward([x for x, _ in wanted], [g for _, g in wanted])

        return losses, backward

    def _run(self, part: Batch, step: int, number: int) -> Losses:
        seeds.seed_everything(seeds.derive(self.seed, "step", step, rank(), number))  # so there is no state to save
        with autocast(self.recipe, part.ids.device):
            return self.task.losses(self.model, part)


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
    """What has a gradient: losses, or features and scale."""
    values = losses.values
    if not isinstance(values, Pairs):
        return [values]
    return [values.left, values.right, *([values.scale] if isinstance(values.scale, Tensor) else [])]


def _joined(parts: list[Losses]) -> Losses:
    """The parts as one, with leaves that take a gradient."""
    mask = None if parts[0].mask is None else torch.cat([part.mask for part in parts if part.mask is not None])
    first = parts[0].values
    if not isinstance(first, Pairs):
        return Losses(torch.cat([part.values for part in parts]).requires_grad_(), mask)  # type: ignore[misc]
    sides = zip(*(_outputs(part)[:2] for part in parts), strict=True)
    left, right = (torch.cat(side).requires_grad_() for side in sides)
    scale = first.scale.clone().requires_grad_() if isinstance(first.scale, Tensor) else first.scale
    return Losses(Pairs(left, right, scale), mask)


def _part(gradient: Tensor | None, places: Tensor, *, first: bool) -> Tensor | None:
    """A part's share of a gradient: its rows, and of a scalar all for the first part."""
    if gradient is None:
        return None
    if gradient.dim() == 0:
        return gradient if first else None
    return gradient[places.to(gradient.device)]
