"""CLIP on several processes, through the command line: step for step what one process does."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from steering.clip.models import EMOJI, build, export

pytestmark = pytest.mark.slow

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}  # no batch norm
ARMS = "openclip_distill,drrho_clip"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[str]:
    """A small transformer with random weights, as a checkpoint to start from."""
    torch.manual_seed(4)
    config: Any = open_clip.get_model_config(EMOJI)
    config |= {"vision_cfg": VISION, "text_cfg": config["text_cfg"] | {"vocab_size": 49408}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit", config)
        yield f"local-dir:{export(build('tiny-vit'), tmp_path_factory.mktemp('start'))}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, start) -> tuple[list[dict], dict]:
    return trained(tmp_path_factory.mktemp("alone"), start, 1)


def trained(folder: Path, start: str, ranks: int, *more: str) -> tuple[list[dict], dict]:
    """The records of a run by some processes, and its summary."""
    words = ["run", "clip", "--steps", "3", "--batch", "16", "--arms", ARMS, "--out", str(folder / f"run{ranks}")]
    sets = [f"options.init={start}", "recipe.optimizer=sgd", "recipe.evaluate_every=0", "recipe.log_every=1", *more]
    words += [word for setting in sets for word in ("--set", setting)]
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, "steering", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = folder / f"run{ranks}"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_clip_as_one(tmp_path, start, alone, kind):
    records, needed = alone
    both, result = trained(
        tmp_path, start, 2, f"recipe.parallel={kind}", "recipe.micro_batch=4", "recipe.grad_checkpointing=true"
    )
    assert len(records) == len(both) == 6
    for actual, expected in zip(both, records, strict=True):
        for figure in ("loss", "objective", "temperature", "effective", "distillation"):
            value = expected[figure]
            assert actual[figure] == (None if value is None else pytest.approx(value, rel=2e-4, abs=1e-6)), figure
    for arm, summary in needed["arms"].items():
        assert result["arms"][arm]["results"][0]["metrics"] == pytest.approx(summary["results"][0]["metrics"], abs=0.01)
