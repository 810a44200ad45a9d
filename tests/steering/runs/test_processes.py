"""Several processes, started as users start them, are one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

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


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables of torchrun and Slurm, and no others."""

    def settle(settings: dict[str, str]) -> None:
        for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS"):
            monkeypatch.setenv(name, "")  # so that what the code sets is undone as well
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    return settle


@pytest.mark.parametrize(
    "settings, place",
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "8"}, (2, 8)),
        (SRUN, (3, 4)),
        (SRUN | {"RANK": "2", "WORLD_SIZE": "8"}, (2, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # the batch script itself, without srun
        ({"RANK": "9", "WORLD_SIZE": "8"}, (0, 1)),
        ({"RANK": "a", "WORLD_SIZE": ""}, (0, 1)),
    ],
)
def test_the_place_in_a_job_is_what_torchrun_or_srun_says(environment, settings, place):
    environment(settings)
    assert processes.rank_and_world_size() == place
    assert set(TORCHRUN) & set(os.environ) == set(TORCHRUN) & set(settings), "asking changes nothing"


def test_srun_is_told_to_torch(environment):
    environment(SRUN)
    assert processes.launched_with_others()
    assert os.environ["RANK"] == "3" and os.environ["LOCAL_RANK"] == "1" and os.environ["MASTER_PORT"] == "20077"


def test_a_number_of_processes_that_is_none_is_a_mistake_in_one_line(environment):
    environment({"WORLD_SIZE": "many"})
    with pytest.raises(UserError, match=r"^WORLD_SIZE is many, but the processes cannot meet [^\n]*$"):
        processes.process_group(torch.device("cpu")).__enter__()


@pytest.mark.parametrize("seen, local, own", [(8, "3", 3), (1, "3", 0), (8, "", 0), (0, "1", 0)])
def test_every_process_of_a_machine_takes_another_gpu_of_those_it_sees(environment, monkeypatch, seen, local, own):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    environment({"LOCAL_RANK": local})
    assert processes.local_device(torch.device("cuda")) == torch.device("cuda", own)
    environment(SRUN)
    assert processes.local_device(torch.device("cuda")) == torch.device("cuda", 1 if seen == 8 else 0)
    assert processes.local_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert processes.local_device(torch.device("cpu")) == torch.device("cpu")


def test_alone_the_first_is_everyone():
    assert processes.on_rank_zero(lambda: {"a": 1}) == {"a": 1}

    def mistake():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        processes.on_rank_zero(mistake)


@pytest.mark.slow
def test_what_befalls_the_first_process_alone_is_told_once_and_ends_all(tmp_path):
    """A folder where the lock should be: only the first process meets it."""
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    process = start(tmp_path, 2, *ARMS, "--out", "run")
    said, _ = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("steer: ")]
    assert process.returncode != 0 and len(lines) == 1 and ".lock" in lines[0]
    assert said.count("Traceback (most recent call last)") == 1, "torchrun's own"


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match=r"device (is named|'cuda:99' was asked for, but torch sees)"):
        processes.device_named(name)
