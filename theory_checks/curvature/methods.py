"""Four ways to fine-tune a trained network on new classes, by what of it is learned."""

import copy
import re
from importlib.util import find_spec
from typing import Literal

from torch import Tensor, nn

from steering.curvature import replace_relus
from steering.errors import UserError

Method = Literal["probe", "curvature", "low_rank", "full"]
LABELS: dict[Method, str] = {
    "probe": "linear probe",
    "curvature": "trainable curvature",
    "low_rank": "LoRA, rank 1",
    "full": "full fine-tuning",
}
BETA = 0.8  # where learned units begin


def available() -> tuple[Method, ...]:
    """The methods whose packages are installed."""
    return tuple(method for method in LABELS if method != "low_rank" or find_spec("peft"))


class FineTuned(nn.Module):
    """A backbone and a new head; batch norms keep the statistics they came with, whatever is learned.

    Args:
        backbone: gives features ``[n, width]``.
        head: from features to scores.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def train(self, mode: bool = True) -> "FineTuned":
        super().train(mode)
        for part in self.backbone.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.training = False
        return self


def prepare(method: Method, backbone: nn.Module, width: int, classes: int, example: Tensor) -> FineTuned:
    """A copy of a backbone with a new head, where what the method learns takes a gradient and nothing else does.

    Args:
        method: ``probe`` learns the head alone; ``curvature`` beta and c of every channel as well; ``low_rank`` adds
            LoRA (Hu et al. 2022) to every linear layer and every plain convolution; ``full`` learns everything.
        backbone: gives features ``[n, width]``; stays as it is.
        width: of the features.
        classes: of the head.
        example: input of the backbone, to count channels with.

    Raises:
        UserError: ``low_rank`` without the package peft.
    """
    body = copy.deepcopy(backbone).requires_grad_(method == "full")
    if method == "curvature":
        body = replace_relus(body, BETA, trainable=True, per_channel=True, example=(example,)).model
    elif method == "low_rank":
        body = _with_low_rank(body)
    return FineTuned(body, nn.Linear(width, classes))


def _with_low_rank(model: nn.Module) -> nn.Module:
    """Adds LoRA of rank 1, which begins at zero; peft knows neither groups nor dilation of convolutions."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("method low_rank needs peft: pip install 'model-steering[peft]', or leave it out") from None
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1))
    ]
    pattern = "|".join(map(re.escape, names))  # peft compares a list with the ends of names
    return inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=pattern), model)


def learned(model: nn.Module) -> int:
    """Number of parameters that take a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def without_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """A copy of a network up to its last linear layer, and that layer.

    Raises:
        UserError: there is no linear layer.
    """
    body = copy.deepcopy(model)
    names = [name for name, part in body.named_modules() if isinstance(part, nn.Linear)]
    if not names or not names[-1]:
        raise UserError("the model has no linear layer to take for its head: give one that ends with nn.Linear")
    head = body.get_submodule(names[-1])
    assert isinstance(head, nn.Linear)
    body.set_submodule(names[-1], nn.Identity())
    return body, head
