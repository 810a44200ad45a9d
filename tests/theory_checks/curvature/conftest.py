"""Pictures of two colours, in a folder for each class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _paint(folder: Path, classes: int = 2, number: int = 8, size: int = 40) -> Path:
    """Pictures of a colour for each class."""
    chance = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(number):
            pixels = chance.integers(0, 60, (size, size + 8, 3), dtype=np.uint8)
            pixels[..., label % 3] += 150
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture
def paint() -> Callable[..., Path]:
    """Makes such folders."""
    return _paint


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Two classes of eight pictures."""
    return _paint(tmp_path_factory.mktemp("pictures") / "data")
