"""Pictures of one's own in folders, one folder a class, and a small convolutional network."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from steering.errors import UserError
from steering.references.files import read_reference
from steering.references.table import LossTable
from steering.settings import Arm, Recipe
from steering.task import Batch
from steering.tasks.in_memory import Classification, Draw, Samples, check_noise, clean, corrupted, logistic_regression
from steering.training.loader import ShuffledLoader
from steering.training.seeds import generator

__all__ = ["Pictures"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
LARGEST = 2 << 30  # bytes of all pictures in memory


@dataclass(frozen=True)
class Pictures(Classification):
    """Any folder of class/picture; the reference is linear on the pixels of pictures that it alone sees.

    Classes are the folders, as torchvision's ImageFolder has them, but in the order of numbers where names have any
    (class2 before class10), and so are files; ids are their positions in that order. Pictures are scaled to a square.

    Args:
        data: the folder.
        ref: losses by id, ``losses.parquet``; None fits one.
        pixels: width and height that pictures are scaled to.
        channels: of the first convolution; the second has twice as many.
        test_share: of the pictures, which are never trained on.
        reference_share: of the pictures, which fit the reference where none is given.
        noise: share of the training labels that are replaced, to see what that does.
        seed: of split and noise; repetition s of a run uses seed + s.
    """

    data: str = ""
    ref: str | None = None
    pixels: int = 32
    channels: int = 16
    test_share: float = 0.3
    reference_share: float = 0.2
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_noise("pictures", self.noise)
        shares = self.test_share, self.reference_share
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UserError(f"test_share and reference_share are above 0 and below 1 in all, got {shares}")
        if self.pixels < 8 or self.channels < 1:
            raise UserError(f"pictures need pixels of at least 8 and channels, got {self.pixels} and {self.channels}")

    @cached_property
    def folders(self) -> list[str]:
        return self._files[0]

    @cached_property
    def _files(self) -> tuple[list[str], list[tuple[Path, int]]]:
        """Names of the classes, and every picture with the number of its own."""
        root = Path(self.data)
        if not self.data or not root.is_dir():
            raise UserError(f"pictures need --data FOLDER with one folder for each class, got {self.data!r}")
        names = sorted((path.name for path in root.iterdir() if path.is_dir()), key=natural)
        pictures = [
            sorted((p for p in (root / n).rglob("*") if p.suffix.lower() in SUFFIXES), key=natural) for n in names
        ]
        empty = [name for name, paths in zip(names, pictures, strict=True) if not paths]
        if len(names) < 2 or empty:
            what = f"{empty[0]} has no pictures ({', '.join(SUFFIXES)})" if empty else f"{len(names)} of them"
            raise UserError(f"{root} needs at least two folders with pictures, one for each class: {what}")
        files = [(path, number) for number, paths in enumerate(pictures) for path in paths]
        if (size := 12 * len(files) * self.pixels**2) > LARGEST:
            raise UserError(f"{len(files)} pictures of {self.pixels} pixels take {size >> 30} GiB: use fewer pixels")
        return names, files

    @cached_property
    def everything(self) -> Samples:
        """All pictures ``[n, 3, pixels, pixels]`` from -1 to 1, with their right labels."""
        paths, labels = zip(*self._files[1], strict=True)
        x = torch.stack([self._picture(path) for path in paths])
        return clean(x, torch.tensor(labels))

    def _picture(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB").resize((self.pixels, self.pixels), Image.Resampling.BILINEAR)
        except Exception as error:  # what reading a damaged picture raises has no common type
            raise UserError(f"{path} cannot be read as a picture: {str(error)[:100]}; delete it") from None
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1

    @property
    def classes(self) -> int:  # type: ignore[override]
        return len(self.folders)

    @property
    def size(self) -> int:
        return len(self._files[1])

    @property
    def population(self) -> int:
        return len(self.split["train"])

    @cached_property
    def split(self) -> dict[str, Tensor]:
        """Ids by what they are for: test, reference, train."""
        order = torch.randperm(self.size, generator=generator(self.seed, "pictures"))
        test = max(1, round(self.size * self.test_share))
        seen = max(1, round(self.size * self.reference_share)) if self.ref is None else 0
        return {"test": order[:test], "reference": order[test : test + seen], "train": order[test + seen :]}

    @cached_property
    def draw(self) -> Draw:
        """As of other tasks in memory; the training samples are at the positions of their ids."""
        x, y, wrong = self.everything
        train, chance = self.split["train"], generator(self.seed, "pictures", "noise")
        noisy = corrupted(x[train], y[train], self.noise, self.classes, chance)
        labels, wrong = y.clone(), wrong.clone()
        labels[train], wrong[train] = noisy.y, noisy.wrong
        parts = [clean(x[self.split[name]], y[self.split[name]]) for name in ("reference", "test")]
        return Draw(Samples(x, labels, wrong), *parts)

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            steps=200,
            batch=max(1, min(64, self.population // 2)),
            optimizer="adamw",
            learning_rate=0.003,
            seeds=3,
            evaluate_every=50,
            arms={
                "erm": Arm(rule="uniform", subtract=False),
                "dro": Arm(rule="cvar(alpha=0.9)", subtract=False),
                "drrho_kl": Arm(rule="kl(temperature=1)", reference_scale=1.0),
                "drrho_cvar": Arm(rule="cvar(alpha=0.7)", reference_scale=1.0),
            },
            baseline="erm",
        )

    def seeded(self, seed: int) -> "Pictures":
        made = replace(self, seed=self.seed + seed)
        for name in ("_files", "everything"):  # read once
            if name in vars(self):
                vars(made)[name] = vars(self)[name]
        return made

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        train = self.split["train"]
        return ShuffledLoader(
            lambda ids, chance: self.load(train[ids], chance), size=len(train), batch=batch, seed=seed
        )

    def target(self) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, self.channels), (self.channels, 2 * self.channels)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * self.channels, self.classes)
        )

    def reference(self) -> Any:
        """Losses of the user's own, or a logistic regression on 8 x 8 pixels of its share of the pictures."""
        if self.ref is not None:
            reference = read_reference(self.ref)
            if not isinstance(reference, LossTable):
                raise UserError(f"pictures take losses by id as reference, got {self.ref}: steer score makes them")
            return reference
        small = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())
        x, y, _ = self.draw.reference
        linear = logistic_regression("pictures", small(x), y, self.classes, 0.1)
        return nn.Sequential(*small, linear).eval().requires_grad_(False)

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The pictures of the test set, with labels as noisy as the training set's."""
        x, y, _ = self.draw.test
        chance = generator(self.seed, "pictures", "held out")
        return corrupted(x, y, self.noise, self.classes, chance).batches(batch)


def natural(name: str | Path) -> list:
    """Sorts numbers within names by their value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(name)) if part]
