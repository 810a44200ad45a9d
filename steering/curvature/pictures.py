"""A torchvision or timm network from a local file, and pictures in a folder for each class."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from steering.curvature.classification import Split
from steering.curvature.methods import without_head
from steering.curvature.samples import drawn
from steering.errors import UserError, did_you_mean
from steering.training.seeds import generator

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what such networks are trained on
FEWEST = 4  # pictures of a class


class Normalised(nn.Module):
    """A network that takes bytes: pictures wait in a quarter of the memory.

    Args:
        network: takes normalised pictures.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x / 255 - self.mean) / self.spread)


def load_network(name: str, path: Path) -> nn.Module:
    """A network with the weights of a file, in evaluation mode.

    Args:
        name: as torchvision or timm call it; ``timm/resnet18`` where both know it and timm is meant.
        path: a state dict, as safetensors or as torch saves tensors. Nothing in it is run.

    Raises:
        UserError: the name is unknown, or the file is missing, damaged or another network's.
    """
    state = _weights(path)
    network = _made(name, 1000)
    head = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    weight = state.get(f"{head[-1]}.weight") if head else None
    if weight is not None and len(weight) != 1000:
        network = _made(name, len(weight))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights in {path} do not fit {name} ({reason})") from None
    return network.eval()


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights in {path} cannot be read ({error})") from None
    except Exception as error:  # what reading a damaged file raises has no common type
        reason = (str(error) or type(error).__name__).partition("\n")[0][:150]
        raise UserError(f"the weights in {path} are no plain tensors ({reason}): save a state dict") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state dict but a {type(state).__name__}: save model.state_dict()")
    inner = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    return {key.removeprefix("module."): value for key, value in inner.items()}


def _made(name: str, classes: int) -> nn.Module:
    import timm
    from torchvision import models

    own, other = models.list_models(module=models), timm.list_models()
    plain = name.removeprefix("timm/")
    with warnings.catch_warnings():  # initial weights, which are replaced
        warnings.simplefilter("ignore")
        if plain == name and name in own:
            return models.get_model(name, weights=None, num_classes=classes)
        if plain in other:
            return timm.create_model(plain, pretrained=False, num_classes=classes)
    hint = did_you_mean(plain, [*own, *other])
    raise UserError(f"neither torchvision nor timm has a network {plain!r}{hint or ': resnet18, say'}")


def backbone(network: nn.Module) -> tuple[nn.Module, int]:
    """The network up to its last linear layer, taking bytes, and the number of its features."""
    body, head = without_head(network)
    return Normalised(body).eval(), head.in_features


def load_pictures(folder: Path, size: int) -> tuple[Split, list[str]]:
    """Pictures of a folder with one folder for each class, scaled by the shorter side and cropped to the middle.

    Returns:
        Bytes ``[n, 3, size, size]`` with classes, and the names of the classes.

    Raises:
        UserError: there are fewer than two classes, too few pictures, or one that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--data takes a folder with one folder of pictures for each class, got {folder}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths = [(p, label) for label, name in enumerate(names) for p in sorted((folder / name).rglob("*"))]
    paths = [(path, label) for path, label in paths if path.suffix.lower() in ENDINGS]
    counts = Counter(label for _, label in paths)
    few = [name for label, name in enumerate(names) if counts[label] < FEWEST]
    if len(names) < 2 or few:
        raise UserError(
            f"{folder} needs two or more folders of at least {FEWEST} pictures, got {len(names)}"
            + (f" with too few in {', '.join(few[:3])}" if few else "")
        )
    x = torch.stack([_picture(path, size) for path, _ in paths])
    return Split(x, torch.tensor([label for _, label in paths])), names


def _picture(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (size, size))
            picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {path} cannot be read ({error}): repair or remove it") from None
    height, width = picture.shape[-2:]
    scale = size / min(height, width)
    shape = [max(size, round(height * scale)), max(size, round(width * scale))]
    scaled = functional.interpolate(picture.float(), shape, mode="bilinear", antialias=True, align_corners=False)
    top, left = ((length - size) // 2 for length in shape)
    return scaled[0, :, top : top + size, left : left + size].round().clamp(0, 255).byte()


def splits(samples: Split, seed: int) -> tuple[Split, Split, Split]:
    """Half of every class to learn from, a quarter to choose on, a quarter to test on."""
    chance = generator(seed, "curvature", "pictures")
    parts: list[list[Split]] = [[], [], []]
    for label in samples.y.unique():
        mine = samples.take((samples.y == label).nonzero().flatten())
        number = len(mine.y)
        for part, some in zip(parts, drawn(mine, [number // 2, number // 4], chance), strict=True):
            part.append(some)
    first, second, third = (Split(torch.cat([s.x for s in part]), torch.cat([s.y for s in part])) for part in parts)
    return first, second, third
