"""Steering in a loop with Hugging Face's Accelerate."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from steering.adapters.entries import as_losses, first_pass, ids_of, reference_losses, reference_of, weigh
from steering.distributed import fail_on_all_ranks
from steering.engine import Steerer
from steering.errors import UserError
from steering.task import Losses

if TYPE_CHECKING:
    from accelerate import Accelerator


class Steering:
    """Steers a loop with ``accelerator.accumulate``: weights over all micro-batches of an optimizer step.

    The steerer is registered: ``save_state`` and ``load_state`` keep what it remembers.

    Args:
        accelerator: whose ``gradient_accumulation_steps`` micro-batches are weighed together.
        steerer: what weighs.
        losses: ``losses(model, batch)``, one a sample, ``[n]``; or ``steering.Losses`` of tokens, or of Pairs.
        reference: a model that ``losses`` takes as well; or any kind that ``as_reference`` takes, asked by
            ``batch["index"]``. None takes ``batch["reference_loss"]``.

    Example:
        >>> from accelerate import Accelerator
        >>> import torch
        >>> accelerator, data = Accelerator(cpu=True, gradient_accumulation_steps=2), torch.randn(8, 3)
        >>> target, small = nn.Linear(3, 1), nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(target.parameters(), 0.1)
        >>> target, optimizer, loader = accelerator.prepare(target, optimizer, torch.utils.data.DataLoader(data, 2))
        >>> def losses(model, batch): return (model(batch)[:, 0] - batch[:, 0]).square()
        >>> steering = Steering(accelerator, Steerer("cvar(alpha=0.5)"), losses, reference=small)
        >>> for batch, loss in steering.batches(target, loader):
        ...     with accelerator.accumulate(target):
        ...         accelerator.backward(loss())
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        steerer: Steerer,
        losses: Callable[[Any, Any], Any],
        reference: Any = None,
    ):
        if not hasattr(accelerator, "gradient_state"):
            raise UserError(f"steering needs an Accelerator of accelerate 1 or newer, got {type(accelerator).__name__}")
        self.accelerator, self.steerer, self.losses, self.reference = accelerator, steerer, losses, reference
        accelerator.register_for_checkpointing(steerer)

    def batches(self, model: nn.Module, loader: Iterable[Any]) -> Iterator[tuple[Any, Callable[[], Tensor]]]:
        """Every micro-batch of a prepared loader, with what gives its part of the loss, to be given to ``backward``.

        The mean of these over the micro-batches of a window is the weighted loss, which is what to log.
        """
        steps, batches = self.accelerator.gradient_accumulation_steps, iter(loader)
        reference = reference_of(self.reference, self.accelerator.unwrap_model(model))
        while window := list(islice(batches, steps)):
            if self.accelerator.gradient_state.end_of_dataloader:
                next(batches, None)  # it has ended: else every micro-batch of its last window would make a step
            self.accelerator.step = -len(window)  # the last one makes it, also in a window that is not full
            yield from zip(window, self._parts(model, window, reference, steps), strict=True)

    def _parts(self, model: nn.Module, window: list, reference: Any, steps: int) -> list[Callable[[], Tensor]]:
        """The parts of the loss, times the number that ``backward`` divides them by."""

        def losses(batch: Any) -> Losses:
            return as_losses(self.losses(model, batch))

        def part(batch: Any, index: slice) -> Tensor:
            return steps * settled.loss(losses(batch).values, index)

        def single() -> Tensor:
            answer = fail_on_all_ranks(lambda: losses(window[0]))
            return weigh(self.steerer, [answer], references, ids)[0].loss(answer.values, slice(None))

        references = fail_on_all_ranks(lambda: [reference_losses(reference, self.losses, batch) for batch in window])
        ids = [ids_of(batch) for batch in window]
        if steps == 1:
            return [single]
        with first_pass(model):
            answers = fail_on_all_ranks(lambda: [losses(batch) for batch in window])
        settled, indices = weigh(self.steerer, answers, references, ids)
        return [partial(part, batch, index) for batch, index in zip(window, indices, strict=True)]
