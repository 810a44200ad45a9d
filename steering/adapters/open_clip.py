"""Steering in the training of open_clip."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steering.contrastive.pairs import Pairs
from steering.engine import Steerer
from steering.errors import UserError
from steering.references import as_reference
from steering.task import Batch

STATE = "steerer"  # in the optimizer's part of a checkpoint


class SteeredClipLoss(nn.Module):
    """A loss with open_clip's interface: pairs are weighed by a rule, against the features of a teacher.

    For open_clip 3 it is the ``loss`` of ``train_one_epoch``, with ``args.distill`` for the teacher; for open_clip 4
    ``DistillCLIPTask(student, teacher, loss=...)``. Features of all processes are gathered here. What is logged is
    the contrastive loss of the target at its own temperature; the gradient is that of the steered loss.

    Args:
        steerer: what weighs, with ``GlobalContrastive()`` or ``InfoNCE()`` at the model's temperature.
        reference: what answers the ids of a batch with ``Pairs``, where no teacher runs along; see ``batches``.

    Example:
        >>> features = nn.functional.normalize(torch.randn(4, 8), dim=-1)
        >>> loss = SteeredClipLoss(Steerer("info_nce"))
        >>> teacher = {"dist_image_features": features, "dist_text_features": features, "dist_logit_scale": 10.0}
        >>> sorted(loss(features, features, torch.tensor(10.0), **teacher, output_dict=True))
        ['contrastive_loss']
    """

    def __init__(self, steerer: Steerer, reference: Any = None):
        super().__init__()
        self.steerer = steerer
        self.reference = None if reference is None else as_reference(reference)
        self.ids: Tensor | None = None  # of the pairs of this batch

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        dist_image_features: Tensor | None = None,
        dist_text_features: Tensor | None = None,
        dist_logit_scale: Any = None,
        output_dict: bool = False,
        **others: Any,
    ) -> Any:
        """The steered loss, a scalar, in a dictionary or a tuple."""
        if others:
            raise UserError(
                f"steering takes the features and the scale of CLIP, got {', '.join(others)}, too: use clip"
            )
        if self.ids is not None and len(self.ids) != len(image_features):
            raise UserError(f"got {len(self.ids)} ids for {len(image_features)} pairs: with ids accum_freq is 1")
        pairs = Pairs(image_features, text_features, logit_scale.reshape(()))
        steered = self.steerer(pairs, self._reference(dist_image_features, dist_text_features), ids=self.ids)
        with torch.no_grad():
            value = pairs.per_sample().mean()
        loss = (
            steered.loss + 0 * pairs.scale
        )  # so that DistributedDataParallel misses no gradient at another temperature
        loss = loss + (value - loss).detach()
        return {"contrastive_loss": loss} if output_dict else (loss,)

    def _reference(self, left: Tensor | None, right: Tensor | None) -> Any:
        if left is not None and right is not None:
            return Pairs(left, right)
        if self.reference is not None and self.ids is not None:
            return self.reference(Batch(self.ids, {})).values
        if self.steerer.reference_scale != 0:
            raise UserError(
                "steering needs the features of a teacher (--distill-model, DistillCLIPTask), or a reference and the "
                "ids of loss.batches(loader); with Steerer(reference_scale=0) it goes by the loss alone"
            )
        return None

    def batches(self, loader: Any) -> "Batches":
        """A loader for open_clip's loop, of one whose batches have ids: ``(images, texts, ids)``, or ``index`` by name.

        They are what a ``DualMemory`` and a reference go by. Whatever else the loader has, this has, too.
        """
        return Batches(loader, self)

    def keep_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the steerer in the optimizer's part of every checkpoint, where open_clip resumes it.

        The model's part stays as it is, so that other software loads it.
        """

        def load(_: Any, state: dict) -> None:
            if STATE not in state:
                raise UserError("this checkpoint has no steerer: resume from one that was saved with steering")
            self.steerer.load_state_dict(state[STATE])

        optimizer.register_state_dict_post_hook(lambda _, state: state | {STATE: self.steerer.state_dict()})
        optimizer.register_load_state_dict_pre_hook(load)


class Batches:
    """A loader that gives a loss the ids of every batch, and open_clip the rest."""

    def __init__(self, loader: Any, loss: SteeredClipLoss):
        self.loader, self.loss = loader, loss

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if isinstance(batch, Mapping):
                self.loss.ids = batch["index"]
                yield {name: x for name, x in batch.items() if name != "index"}
            else:
                *others, self.loss.ids = batch
                yield tuple(others)
