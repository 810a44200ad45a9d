"""Several processes, started as users start them, are one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steering import UserError
from steering.runs import processes
from steering.training import checkpoint


def start(folder: Path, ranks: int, *words: str) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*torchrun, "-m", "steering", "run", *words]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload]


def finish(process: subprocess.Popen) -> str:
    words, _ = process.communicate(timeout=240)
    assert process.returncode == 0, words
    return words


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


ARMS = ("blobs", "--arms", "erm,drrho_kl", "--batch", "40", "--seeds", "1", "--steps", "120")


@pytest.mark.slow
def test_two_processes_train_like_one_and_write_one_run(tmp_path):
    said = finish(start(tmp_path, 2, *ARMS, "--out", "two"))
    finish(start(tmp_path, 1, *ARMS, "--out", "one"))
    assert said.count("report: ") == 1 and (tmp_path / "two" / "report.html").exists()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4), "float32, losses around 1"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    settings = ("--set", "recipe.checkpoint_every=5", "--set", "recipe.keep_checkpoints=3")
    first = start(tmp_path, 2, *ARMS, *settings, "--out", "run")
    path = tmp_path / "run/arms/erm/seed0/checkpoint.pt"
    deadline = time.monotonic() + 120
    while not (path.exists() and checkpoint.load(path)["done"] > 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert checkpoint.load(path)["done"] > 10
    finish(start(tmp_path, 4, "--resume", "run"))
    finish(start(tmp_path, 1, *ARMS, *settings, "--out", "whole"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-3)
    assert len(list(path.parent.glob("checkpoint*.pt"))) == 3


@pytest.mark.slow
def test_a_mistake_is_told_once(tmp_path):
    process = start(tmp_path, 2, "blobs", "--batch", "41")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and said.count("steer: ") == 1 and "cannot be shared evenly" in said


def test_srun_is_understood(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert processes.started_with_others()
    assert os.environ["RANK"] == "3" and os.environ["LOCAL_RANK"] == "1" and os.environ["MASTER_PORT"] == "20077"


def test_alone_the_first_is_everyone():
    assert processes.by_first(lambda: {"a": 1}) == {"a": 1}

    def mistake():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        processes.by_first(mistake)


@pytest.mark.slow
def test_what_befalls_the_first_process_alone_is_told_once_and_ends_all(tmp_path):
    """A folder where the lock should be: only the first process meets it."""
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    process = start(tmp_path, 2, *ARMS, "--out", "run")
    said, _ = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("steer: ")]
    assert process.returncode != 0 and len(lines) == 1 and ".lock" in lines[0]
    assert said.count("Traceback (most recent call last)") == 1, "torchrun's own"
