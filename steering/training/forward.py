"""Losses of a batch and their gradient, in as many parts as memory asks for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from steering.contrastive.pairs import leaves_of, with_leaves
from steering.distributed import rank, world_size
from steering.errors import UserError
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
        parts = batch.split(self.recipe.micro_batch)
        if len(parts) == 1:
            outputs = [self._run(batch, step, 0)]
        else:
            with torch.no_grad(), _unchanged(self.model):
                outputs = [self._run(part, step, number) for number, part in enumerate(parts)]
        losses = Losses.concatenate(outputs, [len(part) for part in parts])
        leaves = [x.detach().requires_grad_() for x in _differentiable(losses)]  # cut off the model
        answers = None if losses.outputs is None else leaves.pop()
        losses = losses._replace(values=with_leaves(losses.values, leaves), outputs=answers)
        lengths = [len(_differentiable(part)[0]) for part in outputs]

        def backward(loss: Tensor) -> None:
            loss.backward()
            gradients = zip(*(_shares(leaf, lengths) for leaf in _differentiable(losses)), strict=True)
            for number, (part, shares) in enumerate(zip(parts, gradients, strict=True)):
                with nullcontext() if number == len(parts) - 1 else no_sync(self.model):
                    output = outputs[0] if len(parts) == 1 else self._run(part, step, number)
                    pairs = [(x, g) for x, g in zip(_differentiable(output), shares, strict=True) if x.requires_grad]
                    torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])

        return losses, backward

    def _run(self, part: Batch, step: int, number: int) -> Losses:
        seeds.seed_everything(seeds.derive(self.seed, "step", step, rank(), number))  # so there is no state to save
        try:
            with autocast(self.recipe, part.ids.device):
                return call_wrapped(self.model, self.task.losses, part)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # in the words of torch
                raise
            raise UserError(
                f"batch norm needs more than one sample, and here it trains on {len(part)} (batch {self.recipe.batch}, "
                f"{world_size()} processes, recipe.micro_batch {self.recipe.micro_batch}): use a larger --batch, or a "
                f"micro-batch that leaves no single sample over"
            ) from None


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's precision for what a model computes."""
    half = HALF.get(recipe.precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


@torch.no_grad()
def score(task: Task, model: nn.Module, batch: Batch, recipe: Recipe) -> Losses:
    """Losses of a batch in evaluation mode, in micro-batches, without answers; leaves no trace in the generators."""
    parts = batch.split(recipe.micro_batch)
    model.eval()
    with seeds.untouched(), autocast(recipe, batch.ids.device):
        losses = [task.losses(model, part)._replace(outputs=None) for part in parts]
    return Losses.concatenate(losses, [len(part) for part in parts])


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers, such as running means, leave this block as they entered it: the parts are run once more."""
    kept = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, old in zip(model.buffers(), kept, strict=True):
        buffer.copy_(old)


def _differentiable(losses: Losses) -> list[Tensor]:
    """What has a gradient: losses and answers, or features and scale."""
    return [*leaves_of(losses.values), *([] if losses.outputs is None else [losses.outputs])]


def _shares(leaf: Tensor, lengths: list[int]) -> Sequence[Tensor]:
    """The gradient of a leaf for each part, of a scalar all for the first; zeros where no loss depends on it.

    They are zeros and not left out because every process waits for all gradients.
    """
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    if gradient.dim() == 0:
        return [gradient] + [torch.zeros_like(gradient)] * (len(lengths) - 1)
    return gradient.split(lengths)
