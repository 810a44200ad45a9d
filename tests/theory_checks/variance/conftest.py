"""Options of the command, as a test needs them, and small shards on disk."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.writer import TarWriter

from steering.theory_checks.variance.command import Options

USUAL = {
    "target": None,
    "refs": [],
    "proxy": None,
    "data": None,
    "caption_field": None,
    "seeds": None,
    "validate": False,
    "sets": [],
    "out": None,
    "device": "cpu",
    "pairs": 100,
    "workers": 0,
    "command": "steer variance",
}


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., Options]:
    """What was typed; the report goes to ``tmp_path / "report"``."""

    def ask(**options) -> Options:
        return Options(**(USUAL | {"out": tmp_path / "report"} | options))  # type: ignore[arg-type]

    return ask


@pytest.fixture
def tars(tmp_path: Path) -> Callable[[int, int], str]:
    """Writes so many shards of so many pairs and returns their pattern."""

    def write(shards: int, pairs: int) -> str:
        chance = np.random.default_rng(0)
        for shard in range(shards):
            with TarWriter(str(tmp_path / f"{shard:03d}.tar")) as tar:
                for number in range(shard * pairs, (shard + 1) * pairs):
                    picture = io.BytesIO()
                    Image.fromarray(chance.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(picture, "PNG")
                    tar.write({"__key__": f"{number:05d}", "png": picture.getvalue(), "txt": f"picture {number}"})
        return f"{tmp_path}/*.tar"

    return write
