"""A stranger's package: a task, a rule and a selector, without a change to anything of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODULE = '''
"""All a stranger writes: a straight line to be found, and two plugins to find it with."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from steering import Batch, Losses
from steering.settings import Arm, Metric, Recipe
from steering.training.loader import ShuffledLoader


@dataclass(frozen=True)
class Line:
    """A straight line through noise."""

    samples: int = 60
    seed: int = 0

    metrics: ClassVar = {"distance": Metric(label="distance to the true line", better="low")}
    recipe: ClassVar = Recipe(
        steps=20,
        batch=10,
        learning_rate=0.1,
        seeds=2,
        arms={"plain": Arm(subtract=False), "steered": Arm(rule="kl(temperature=1.0)")},
        baseline="plain",
    )
    rows: ClassVar = 1

    @property
    def size(self):
        return self.samples

    def seeded(self, seed):
        return replace(self, seed=seed)

    def target(self):
        return nn.Linear(1, 1)

    def reference(self):
        model = nn.Linear(1, 1)
        model.load_state_dict({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([0.0])})
        return model

    def stream(self, batch, *, seed):
        return ShuffledLoader(self._load, size=self.samples, batch=batch, seed=seed)

    def losses(self, model, batch):
        return Losses((model(batch["x"]) - batch["y"]).square()[:, 0])

    def evaluate(self, model):
        return {"distance": float((model.weight - 2).abs() + model.bias.abs())}

    def _load(self, ids, _):
        chance = torch.Generator().manual_seed(self.seed)
        x, noise = torch.randn(2, self.samples, 1, generator=chance)
        return Batch(ids, {"x": x[ids], "y": (2 * x + noise)[ids]})


@dataclass(frozen=True)
class Sigmoid:
    """Weights that rise smoothly around the mean excess and never exceed two."""

    slope: float = 1.0
    width = 1
    normalised = False

    def dual(self, excess, mask, population=None):
        return (excess * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)

    def blend(self, old, new, rate):
        return torch.lerp(old, new, rate)

    def weights(self, excess, dual):
        return 2 * torch.sigmoid(self.slope * (excess - dual))


class EveryOther:
    """The candidates in even places."""

    uses_reference = False

    def __init__(self, keep=0.5):
        self.keep = keep

    def __call__(self, losses, reference, *, number, generator):
        return 2 * torch.arange(number)
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "stranger"
version = "3.1"

[project.entry-points."steering.tasks"]
line = "stranger_line:Line"
gone = "stranger_gone:Line"

[project.entry-points."steering.rules"]
sigmoid = "stranger_line:Sigmoid"

[project.entry-points."steering.selectors"]
every_other = "stranger_line:EveryOther"

[tool.setuptools]
py-modules = ["stranger_line"]
"""


def steer(folder: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH")
    places = os.pathsep.join(part for part in (path and str(path), inherited) if part)
    environment = {**os.environ, "PYTHONPATH": places}
    return subprocess.run(
        [sys.executable, "-P", "-m", "steering", *words], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where the stranger's package is installed, by pip, from its own project."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("target")
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "stranger_line.py").write_text(MODULE)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(project)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def check(done: subprocess.CompletedProcess[str], folder: Path, task: str) -> None:
    assert done.returncode == 0 and done.stderr == "", done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["task"] == task and list(summary["arms"]) == ["reference", "plain", "steered"]
    own = summary["arms"]["steered"]
    assert own["rule"].endswith("(slope=2.0)") and own["selector"].endswith("(keep=0.5)")
    assert [(r["samples"], r["candidates"]) for r in own["results"]] == [(200, 400)] * 2
    assert "distance to the true line" in (folder / "report.html").read_text()


def test_an_installed_package_brings_a_task_a_rule_and_a_selector(installed, tmp_path):
    words = ["line", "--rule", "sigmoid(slope=2.0)", "--selector", "every_other(keep=0.5)", "--out", "run"]
    check(steer(tmp_path, "run", *words, path=installed), tmp_path / "run", "line")


def test_the_list_shows_them_and_survives_one_that_is_broken(installed, tmp_path):
    done = steer(tmp_path, "list", path=installed)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and done.stderr == ""
    assert "line A straight line through noise." in lines
    assert "sigmoid Weights that rise smoothly around the mean excess and never exceed two." in lines
    assert "every_other The candidates in even places." in lines
    assert "gone gone: cannot import stranger_gone; is it installed, or in this folder?" in lines
    assert any(line.startswith("digits ") for line in lines)


def test_a_file_in_the_working_directory_needs_no_installing(tmp_path):
    (tmp_path / "kitchen.py").write_text(MODULE)
    rule, selector = "kitchen:Sigmoid(slope=2.0)", "kitchen:EveryOther(keep=0.5)"
    done = steer(tmp_path, "run", "kitchen:Line(samples=40)", "--rule", rule, "--selector", selector, "--out", "run")
    check(done, tmp_path / "run", "kitchen:Line")
    assert "options:\n  samples: 40\n" in (tmp_path / "run" / "config.yaml").read_text()
