"""Four ways to teach a trained network new classes, by what of it is learned."""

import copy
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from steering.curvature.replace import replace_relus
from steering.errors import UserError

Method = Literal["probe", "curvature", "low_rank", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
WORDS: dict[Method, str] = {
    "probe": "linear probe",
    "curvature": "trainable curvature",
    "low_rank": "LoRA, rank 1",
    "full": "full fine-tuning",
}
BETA = 0.8  # where learned units begin


class Tuned(nn.Module):
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

    def train(self, mode: bool = True) -> "Tuned":
        super().train(mode)
        for part in self.backbone.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.training = False
        return self


class LowRank(nn.Module):
    """A linear or convolutional layer, frozen, and beside it one of low rank that begins at zero (Hu et al. 2022).

    Args:
        layer: what is added to.
        rank: of what is learned.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int = 1):
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            self.up: nn.Linear | nn.Conv2d = nn.Linear(rank, layer.out_features, bias=False)
        else:
            same = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, **same)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def prepare(method: Method, backbone: nn.Module, width: int, classes: int, example: Tensor) -> Tuned:
    """A copy of a backbone with a new head, where what the method learns takes a gradient and nothing else does.

    Args:
        method: ``probe`` learns the head alone; ``curvature`` beta and c of every channel as well; ``low_rank`` adds
            to every linear layer and every convolution without groups; ``full`` learns everything.
        backbone: gives features ``[n, width]``; stays as it is.
        width: of the features.
        classes: of the head.
        example: input of the backbone, to count channels with.
    """
    body = copy.deepcopy(backbone).requires_grad_(method == "full")
    if method == "curvature":
        body = replace_relus(body, BETA, trainable=True, per_channel=True, example=(example,), in_place=True).model
    elif method == "low_rank":
        add_low_rank(body)
    return Tuned(body, nn.Linear(width, classes))


def add_low_rank(model: nn.Module, rank: int = 1) -> int:
    """Puts a layer of low rank beside every linear layer and every convolution without groups; gives their number."""
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    for parent, name, layer in places:
        parent._modules[name] = LowRank(layer, rank)
    return len(places)


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
    path, _, name = names[-1].rpartition(".")
    parent = body.get_submodule(path)
    head = parent._modules[name]
    assert isinstance(head, nn.Linear)
    parent._modules[name] = nn.Identity()
    return body, head


def network(inputs: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """A plain network with ReLUs."""
    sizes = [inputs, *[width] * depth]
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, classes))
