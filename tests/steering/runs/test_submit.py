"""``steer submit``: what Slurm is asked for, when a job is queued again, and real jobs on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import pytest

pytest.importorskip("submitit")
TEMPLATE = Path(__file__).parents[3] / "docs/slurm.sh"
LINE = ("run", "blobs", "--seeds", "1", "--out", "x")


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program that is found before any other of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def steer(monkeypatch, capsys, tmp_path):
    """Runs steer in an empty folder on a machine with a Slurm that takes every job; gives exit code and words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("srun", "sbatch"):
        stand_in(tmp_path / "bin", name, "echo Submitted batch job 77")

    def call(*words: str) -> tuple[int, str]:
        code, out, err = command_line.steer(monkeypatch, capsys, *words)
        return code, "".join(f"{line}\n" for line in (*out, *err))

    return call


def test_a_job_asks_for_a_task_on_every_gpu(steer, tmp_path):
    asked = ("--nodes", "2", "--gpus", "8", "--hours", "1.5", "--partition", "big")
    code, said = steer("submit", *asked, "--set-slurm", "account=a b", "--set-slurm", "exclusive", "--", *LINE)
    assert code == 0 and "job 77: steer run blobs" in said and f"output: {tmp_path}/x.jobs/77_0_log.out" in said
    script = (tmp_path / "x.jobs/77_submission.sh").read_text().splitlines()
    options = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    wanted = {"nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "time=90", "partition=big", "signal=TERM@120"}
    assert wanted | {"account='a b'", "exclusive", "requeue", "open-mode=append"} <= options
    assert not (tmp_path / "x").exists(), "the run makes its folder itself"


def test_without_gpus_none_are_asked_for(steer, tmp_path):
    assert steer("submit", "--gpus", "0", "--processes", "3", "--", *LINE)[0] == 0
    script = (tmp_path / "x.jobs/77_submission.sh").read_text()
    assert "--ntasks-per-node=3\n" in script and "gpus-per" not in script


@pytest.mark.parametrize(
    "words, message",
    [
        (["--", "rum", "blobs"], "no command 'rum'"),
        (["--", "run", "blobs"], "say where with --out"),
        (["--", "run", "blobs", "--stepps", "3", "--out", "x"], "--stepps"),
        (["--local", "--nodes", "2", "--", *LINE], "--local is this machine alone, got --nodes 2"),
        (["--hours", "0", "--", *LINE], "--hours"),
    ],
)
def test_a_mistake_is_told_before_anything_is_queued(steer, tmp_path, words, message):
    code, said = steer("submit", *words)
    assert code == 2 and message in said and said.startswith("steer: ") and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_slurm_has_against_a_job_is_told(steer, tmp_path):
    stand_in(tmp_path / "bin", "sbatch", "echo sbatch: error: invalid partition: big >&2; exit 1")
    code, said = steer("submit", "--", *LINE)
    assert code == 1 and said.endswith("steer: the job was not taken: sbatch: error: invalid partition: big\n")


def test_where_there_is_no_slurm_the_way_out_is_told(steer, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = steer("submit", "--", *LINE)
    assert code == 2 and "this machine has no srun" in said and "--local" in said


def test_the_extra_that_is_missing_is_named(steer, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = steer("submit", "--", *LINE)
    assert said == (2, "steer: steer submit needs submitit: pip install 'model-steering[slurm]'\n")


@pytest.fixture(params=["steer submit", "docs/slurm.sh"])
def script(request, steer, tmp_path) -> Path:
    """A batch script; it finds a folder with stand-ins for Slurm's programs in front of all others."""
    if request.param == "steer submit":
        steer("submit", "--", *LINE)
        return tmp_path / "x.jobs/77_submission.sh"
    if not TEMPLATE.exists():
        pytest.skip("only a checkout has the documentation")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    return TEMPLATE


def test_a_batch_script_is_valid_bash(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    "code, state, again",
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (143, "RUNNING", True),  # the time limit is near, or another job goes first
        (143, "CANCELLED", False),
        (143, "COMPLETING", False),
        (143, "", False),
    ],
)
def test_a_job_is_queued_again_only_where_it_was_stopped_and_not_cancelled(script, tmp_path, code, state, again):
    stand_in(tmp_path / "bin", "srun", f'[ "$SRUN_CPUS_PER_TASK" = 3 ] && exit {code}')
    stand_in(tmp_path / "bin", "squeue", f'[ "$*" = "--noheader --jobs 77 --format %T" ] && echo {state}')
    stand_in(tmp_path / "bin", "scontrol", 'echo "$*" >> scontrol')
    done = subprocess.run(
        ["bash", script], cwd=tmp_path, env=os.environ | {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "3"}
    )
    assert done.returncode == code
    said = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert said == ("requeue 77\n" if again else "")


def start(folder: Path, *words: str) -> int:
    """Submits a real job on this machine; gives its number, which is that of the process that looks after it."""
    command = [sys.executable, "-m", "steering", "submit", "--local", "--gpus", "0", *words]
    with open(folder / "said", "w+") as said:  # no pipe: it would stay open as long as the job
        subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said, check=True)
    return int((folder / "said").read_text().split()[1].rstrip(":"))


def wait_for(found, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline, [path.read_text() for path in folder.glob("*.jobs/*.out")]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_on_this_machine_is_a_run_like_any_other(tmp_path, processes):
    words = ("--", "run", "blobs", "--steps", "3", "--batch", "40", "--seeds", "1", "--out", "x")
    number = start(tmp_path, "--processes", str(processes), *words)
    wait_for((tmp_path / "x/report.html").exists, tmp_path)
    summary = json.loads((tmp_path / "x/summary.json").read_text())
    assert summary["arms"]["erm"]["results"][0]["samples"] == 120
    assert len(list((tmp_path / "x.jobs").glob(f"{number}_*_log.out"))) == processes


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_and_the_same_line_goes_on(tmp_path):
    words = ("--", "run", "blobs", "--arms", "erm", "--steps", "600", "--seeds", "1", "--out", "x")
    number, checkpoint = start(tmp_path, *words), tmp_path / "x/arms/erm/seed0/checkpoint.pt"
    log = tmp_path / f"x.jobs/{number}_0_log.out"
    wait_for(checkpoint.exists, tmp_path)
    os.kill(number, signal.SIGTERM)  # which it passes on, as Slurm does at the time limit
    wait_for(lambda: "is saved. Go on with" in log.read_text(), tmp_path)
    done = int(log.read_text().partition("stopped after step ")[2].split()[0])
    assert done < 600 and not (tmp_path / "x/report.html").exists()
    start(tmp_path, *words)
    wait_for((tmp_path / "x/report.html").exists, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, *range(10, 601, 10)], "none is missing or twice"
