"""A torchvision or timm network from a local file, and pictures in a folder for each class."""

import warnings
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from steering.errors import UserError, did_you_mean
from steering.tasks.in_memory import Samples, clean
from steering.theory_checks.curvature.small import random_parts, take
from steering.training.seeds import generator

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what such networks are trained on
FEWEST = 4  # pictures of a class


class Normalised(nn.Sequential):
    """A network of normalised pictures that takes bytes: pictures wait in a quarter of the memory."""

    def forward(self, input: Tensor) -> Tensor:
        mean, spread = (torch.tensor(values, device=input.device).reshape(3, 1, 1) for values in (MEAN, SPREAD))
        return super().forward((input / 255 - mean) / spread)


def load_network(name: str, path: Path) -> nn.Module:
    """A network with the weights of a file, in evaluation mode.

    Args:
        name: as torchvision or timm call it; ``timm/resnet18`` where both know it and timm is meant.
        path: a state dict, as safetensors or as torch saves tensors. Nothing in it is run.

    Raises:
        UserError: the name is unknown, or the file is missing, damaged or another network's.
    """
    state = _weights(path)
    network = _network(name, 1000)
    heads = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    weight = state.get(f"{heads[-1]}.weight") if heads else None
    if weight is not None and len(weight) != 1000:
        network = _network(name, len(weight))
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


def _network(name: str, classes: int) -> nn.Module:
    import timm
    from torchvision import models

    plain = name.removeprefix("timm/")
    with warnings.catch_warnings():  # initial weights, which are replaced
        warnings.simplefilter("ignore")
        if name in models.list_models(module=models):
            return models.get_model(name, weights=None, num_classes=classes)
        if plain in timm.list_models():
            return timm.create_model(plain, pretrained=False, num_classes=classes)
    hint = did_you_mean(plain, [*models.list_models(module=models), *timm.list_models()]) or ": resnet18, say"
    raise UserError(f"neither torchvision nor timm has a network {plain!r}{hint}")


def load_pictures(folder: Path, size: int) -> tuple[Samples, list[str]]:
    """Pictures of a folder with one folder for each class, scaled by the shorter side and cropped to the middle.

    Returns:
        Bytes ``[n, 3, size, size]`` with classes, and the names of the classes.

    Raises:
        UserError: there are fewer than two classes, too few pictures, or one that cannot be read.
    """
    from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

    if not folder.is_dir():
        raise UserError(f"--data takes a folder with one folder of pictures for each class, got {folder}")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths = [[p for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in ENDINGS] for name in names]
    few = [name for name, of_class in zip(names, paths, strict=True) if len(of_class) < FEWEST]
    if len(names) < 2 or few:
        which = f" with too few in {', '.join(few[:3])}" if few else ""
        raise UserError(f"{folder} needs two or more folders of at least {FEWEST} pictures, got {len(names)}{which}")

    def picture(path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                image.draft("RGB", (size, size))
                pixels = pil_to_tensor(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"the picture {path} cannot be read ({error}): repair or remove it") from None
        return center_crop(resize(pixels, [size]), [size])

    labels = torch.tensor([label for label, of_class in enumerate(paths) for _ in of_class])
    return clean(torch.stack([picture(path) for of_class in paths for path in of_class]), labels), names


def splits(samples: Samples, seed: int) -> tuple[Samples, ...]:
    """Half of every class to learn from, a quarter to choose on, a quarter to test on."""
    chance = generator(seed, "curvature", "pictures")
    of_class = [take(samples, (samples.y == label).nonzero().flatten()) for label in samples.y.unique()]
    parts = [random_parts(one, [len(one.y) // 2, len(one.y) // 4], chance) for one in of_class]
    return tuple(Samples(*map(torch.cat, zip(*part, strict=True))) for part in zip(*parts, strict=True))
