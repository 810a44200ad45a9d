"""skorch: a net of scikit-learn's kind that is steered in every batch."""

import copy
from typing import Any

import torch
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from skorch.utils import to_numpy, to_tensor
from torch import Tensor, nn

from steering.engine import Steerer
from steering.errors import UserError
from steering.references.predictions import prediction_losses
from steering.rules.rule import Rule


class _SteeredNet(NeuralNet):
    """What a steered net has besides skorch's: a rule, and a reference that stays fitted when the net is cloned."""

    def __init__(
        self,
        module: Any,
        *args: Any,
        reference: Any = None,
        rule: str | Rule = "kl(temperature=1)",
        reference_scale: Any = 1.0,
        **kwargs: Any,
    ):
        kwargs.setdefault("criterion__reduction", "none")
        super().__init__(module, *args, **kwargs)
        self.reference, self.rule, self.reference_scale = reference, rule, reference_scale

    def __setattr__(self, name: str, attr: Any) -> None:
        if name != "reference":
            return super().__setattr__(name, attr)
        self.__dict__[name] = attr  # skorch would train a module that is set as an attribute

    def initialize(self):
        super().initialize()
        self.steerer_ = Steerer(self.rule, reference_scale=self.reference_scale)
        self.weighted_loss_ = None
        return self

    def get_loss(self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False) -> Tensor:
        """The steered loss of a training batch, the plain mean of a validation batch.

        Raises:
            UserError: the criterion gives no loss for each sample.
        """
        losses = super().get_loss(y_pred, y_true, X=X, training=training)
        if losses.shape[:1] != (len(y_true),):
            raise UserError(f"a criterion gives a loss for each of {len(y_true)} samples: criterion__reduction='none'")
        losses = losses.reshape(len(losses), -1).mean(1)
        if not training:
            return losses.mean()
        steered = self.steerer_(losses, self._reference_losses(X, y_true))
        self.weighted_loss_ = steered.weighted_loss
        return steered.loss

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """skorch's step; what its history shows is the weighted loss, which has no reference in it."""
        return super().train_step_single(batch, **fit_params) | {"loss": self.weighted_loss_}

    @torch.no_grad()
    def _reference_losses(self, X: Any, y: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        if isinstance(self.reference, nn.Module):
            outputs = self.reference.to(self.device).eval()(to_tensor(X, self.device))
            losses = super().get_loss(outputs, to_tensor(y, self.device), X=X, training=False)
            return losses.reshape(len(losses), -1).mean(1)
        return torch.from_numpy(prediction_losses(self.reference, to_numpy(X), to_numpy(y)))

    def __sklearn_clone__(self):
        bare = copy.copy(self)
        bare.reference = None
        made: Any = super(_SteeredNet, bare).__sklearn_clone__()
        made.reference = self.reference
        return made


class SteeredNetClassifier(_SteeredNet, NeuralNetClassifier):
    """skorch's NeuralNetClassifier whose criterion is steered in every training batch.

    Args:
        module, args, kwargs: as of skorch; the criterion is made with ``reduction="none"``.
        reference: a fitted classifier of what skorch hands to the module, or a trained module whose outputs the same
            criterion takes. None steers by the loss alone (DRO).
        rule: by its constructor call, or a Rule.
        reference_scale: a number or ``"auto"``, as of Steerer.
    """


class SteeredNetRegressor(_SteeredNet, NeuralNetRegressor):
    """skorch's NeuralNetRegressor whose criterion is steered in every training batch.

    Args:
        module, args, kwargs, reference, rule, reference_scale: as of ``SteeredNetClassifier``.
    """
