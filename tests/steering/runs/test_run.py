"""A run in its folder: what it writes, what it refuses, and how it goes on after any kind of end."""

import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from steering import RunError, UserError
from steering.runs import config as configs
from steering.runs import run as runs
from steering.runs.folder import Stopped
from steering.runs.summary import Summary
from steering.training import loop

BLOBS = ("recipe.steps=12", "recipe.batch=20", "recipe.seeds=2", "recipe.evaluate_every=5", "recipe.checkpoint_every=4")


@pytest.fixture(autouse=True, scope="module")
def no_report():
    """Plots take seconds; whoever wants them calls the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(no_report, tmp_path_factory) -> tuple[Path, Summary]:
    """A run that nothing happened to; not to be changed."""
    folder = tmp_path_factory.mktemp("blobs") / "run"
    return folder, prepare(folder).execute()


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


def prepare(folder: Path, *sets: str, task: str = "blobs(samples=60)", settings=BLOBS, file=None) -> runs.Run:
    config, problem = configs.resolve(task if file is None else None, sets=[*settings, *sets], file=file)
    return runs.Run(config, problem, folder, Console(file=io.StringIO()), ["steer", "run", "blobs", "a b"])


def resume(folder: Path) -> Summary:
    return prepare(folder, settings=(), file=folder / "config.yaml").execute()


def numbers(summary: Summary) -> dict:
    """Every number of every arm and seed, apart from the clock."""
    return {
        name: [r.model_dump(exclude={"cpu_seconds", "seconds"}) for r in sorted(arm.results, key=lambda r: r.seed)]
        for name, arm in summary.arms.items()
    }


def journal(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "cpu_seconds"} for line in lines]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------- a run from end to end


def test_a_run_leaves_its_configuration_numbers_and_models(whole):
    folder, summary = whole
    assert Summary.model_validate_json((folder / "summary.json").read_text()) == summary
    assert configs.load(folder / "config.yaml").recipe.steps == 12
    assert summary.command == "steer run blobs 'a b'"
    for arm in ("erm", "dro", "drrho_kl"):
        for seed in (0, 1):
            place = folder / "arms" / arm / f"seed{seed}"
            assert loop.checkpoint.load(place / "checkpoint.pt")["done"] == 12
            result = json.loads((place / "result.json").read_text())
            assert result == json.loads(summary.arms[arm].results[seed].model_dump_json())
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # nothing half written is left


def test_every_arm_and_the_reference_are_there_for_every_seed(whole):
    _, summary = whole
    assert list(summary.arms) == ["reference", "erm", "dro", "drrho_kl"]
    assert all([r.seed for r in arm.results] == [0, 1] for arm in summary.arms.values())
    assert {r.samples for name, arm in summary.arms.items() for r in arm.results if name != "reference"} == {240}
    assert summary.arms["erm"].results[0].metrics != summary.arms["erm"].results[1].metrics


def test_the_journal_has_first_last_and_every_tenth_step_once_and_every_evaluation(whole):
    lines = [line for line in journal(whole[0]) if (line["arm"], line["seed"]) == ("dro", 1)]
    assert [line["step"] for line in lines if "loss" in line] == [1, 10, 12]
    assert [line["step"] for line in lines if "evaluation" in line] == [5, 10, 12]


def test_the_records_name_the_machine_by_kind_only(whole):
    text = (whole[0] / "environment.json").read_text()
    assert json.loads(text)["packages"]["torch"] and platform.node() not in text and str(Path.home()) not in text


def test_a_finished_run_is_read_back_and_not_trained_again(finished, whole, monkeypatch):
    monkeypatch.setattr(loop.Training, "step", lambda _: pytest.fail("trained again"))
    assert numbers(resume(finished)) == numbers(whole[1])


def test_the_written_configuration_gives_the_same_numbers_in_another_folder(tmp_path):
    sets = ("recipe.arms.dro.gamma=0.5", "options.noise=0.2", "recipe.seeds=1")
    first = prepare(tmp_path / "a", *sets).execute()
    again = prepare(tmp_path / "b", settings=(), file=tmp_path / "a" / "config.yaml").execute()
    assert numbers(again) == numbers(first)
    assert journal(tmp_path / "b") == journal(tmp_path / "a")


def test_an_arm_is_the_same_whoever_runs_beside_it(tmp_path, whole):
    alone = configs.resolve("blobs(samples=60)", sets=BLOBS)[0]
    few = {"arms": {"drrho_kl": alone.recipe.arms["drrho_kl"].model_dump()}, "baseline": "drrho_kl"}
    config = configs.validate(alone.model_dump() | {"recipe": alone.recipe.model_dump() | few})
    run = prepare(tmp_path)
    run = runs.Run(config, run.task, run.folder, run.console, [])
    assert numbers(run.execute())["drrho_kl"] == numbers(whole[1])["drrho_kl"]


def test_a_run_of_the_reference_alone_is_one(tmp_path):
    config, task = configs.resolve("blobs(samples=60)", sets=BLOBS)
    config = configs.validate(
        config.model_dump() | {"recipe": config.recipe.model_dump() | {"arms": {}, "baseline": ""}}
    )
    summary = runs.Run(config, task, tmp_path, Console(file=io.StringIO()), []).execute()
    assert list(summary.arms) == ["reference"] and len(summary.arms["reference"].results) == 2


# --------------------------------------------------------------------------------------------- what is refused


def test_a_run_of_another_configuration_is_refused_with_the_difference_and_not_touched(finished):
    before = snapshot(finished)
    message = r"holds a run of another configuration \(options.noise 0.4 -> 0.1; recipe.steps 12 -> 9\): choose another"
    with pytest.raises(UserError, match=message):
        prepare(finished, "recipe.steps=9", "options.noise=0.1").execute()
    assert snapshot(finished) == before


def test_a_folder_that_is_no_run_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(UserError, match=r"is no run folder \(it has no config.yaml\) nor empty: choose another --out"):
        prepare(tmp_path).execute()
    assert snapshot(tmp_path) == {"thesis.tex": b"all my work"}


def test_an_empty_folder_is_taken(tmp_path):
    prepare(tmp_path, "recipe.seeds=1", "recipe.steps=1").execute()
    assert (tmp_path / "summary.json").exists()


def test_a_damaged_checkpoint_is_named_and_can_be_deleted(finished, whole):
    place = finished / "arms" / "dro" / "seed1"
    (place / "result.json").unlink()
    (place / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"the checkpoint .*dro/seed1/checkpoint.pt cannot be read .* delete it to start"
    ):
        resume(finished)
    (place / "checkpoint.pt").unlink()
    assert numbers(resume(finished)) == numbers(whole[1])


def test_a_bad_number_ends_the_run_and_names_arm_seed_and_checkpoint(tmp_path):
    with pytest.raises(RunError, match=r"erm, seed 0: .* \(last checkpoint: .*arms/erm/seed0/checkpoint.pt\)$"):
        prepare(tmp_path, "recipe.learning_rate=1e38", "recipe.optimizer=sgd").execute()
    assert loop.checkpoint.load(tmp_path / "arms" / "erm" / "seed0" / "checkpoint.pt")["done"] % 4 == 0


def test_a_damaged_result_is_named_and_can_be_deleted(finished, whole):
    place = finished / "arms" / "dro" / "seed1" / "result.json"
    place.write_text("{")
    with pytest.raises(UserError, match=r"dro/seed1/result.json is damaged: delete it"):
        resume(finished)
    place.unlink()
    assert numbers(resume(finished)) == numbers(whole[1])


def test_a_disk_that_takes_no_more_ends_the_run_in_one_line(tmp_path):
    """No file may grow beyond 8 kB: enough for the weights that training begins with, not for an optimiser's state."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*checkpoint.pt: File too large\. Free some space") as caught:
            prepare(tmp_path).execute()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = next((tmp_path / "arms").rglob("checkpoint.pt"))
    assert str(caught.value).endswith(f"(last checkpoint: {kept})") and "\n" not in str(caught.value)
    assert loop.checkpoint.load(kept)["done"] == 0


# ---------------------------------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("at", [1, 24, 29])
def test_a_run_that_is_stopped_in_any_arm_goes_on_to_the_same_numbers(tmp_path, whole, monkeypatch, at):
    step, taken = loop.Training.step, []

    def interrupted(training: loop.Training):
        taken.append(1)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(training)

    monkeypatch.setattr(loop.Training, "step", interrupted)
    with pytest.raises(
        Stopped, match=rf"all that is finished is saved\. Go on with: steer run --resume {tmp_path}/parts$"
    ) as caught:
        prepare(tmp_path / "parts").execute()
    assert caught.value.signal == signal.SIGTERM
    parts = resume(tmp_path / "parts")
    assert len(taken) == 72 and numbers(parts) == numbers(whole[1])
    assert journal(tmp_path / "parts") == journal(whole[0])


def test_a_signal_in_the_very_last_step_is_too_late_to_stop_anything(tmp_path, monkeypatch):
    step = loop.Training.step

    def interrupted(training: loop.Training):
        if (training.arm.rule, training.seed, training.done) == ("kl(temperature=0.5)", 1, 11):
            os.kill(os.getpid(), signal.SIGINT)
        return step(training)

    monkeypatch.setattr(loop.Training, "step", interrupted)
    assert prepare(tmp_path).execute().seeds == 2


def test_a_run_that_dies_between_two_checkpoints_goes_on_to_the_same_numbers(tmp_path, whole, monkeypatch):
    step, taken = loop.Training.step, []

    def killed(training: loop.Training):
        taken.append(1)
        if len(taken) == 24:  # the last step of the second arm: the journal has more than the checkpoint
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "step", killed)
        prepare(tmp_path).execute()
    assert max(line["step"] for line in journal(tmp_path) if line["arm"] == "dro") == 10
    assert numbers(resume(tmp_path)) == numbers(whole[1]) and journal(tmp_path) == journal(whole[0])


def test_a_signal_while_the_reference_is_evaluated_stops_at_once(tmp_path, whole, monkeypatch):
    evaluate = loop.evaluate

    def interrupted(task, model):
        if task.seed == 1 and not any(p.requires_grad for p in model.parameters()):
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("not stopped")
        return evaluate(task, model)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        with pytest.raises(Stopped, match=r"stopped; all that is finished is saved\. Go on with: ") as caught:
            prepare(tmp_path).execute()
    assert caught.value.signal == signal.SIGTERM
    assert numbers(resume(tmp_path)) == numbers(whole[1])


def test_a_resumed_run_remembers_what_was_typed_first_and_when(finished, whole):
    again = configs.resolve(None, file=finished / "config.yaml")
    later = runs.Run(*again, finished, Console(file=io.StringIO()), ["steer", "run", "--resume", "x"]).execute()
    assert (later.command, later.started, later.seconds) == (whole[1].command, whole[1].started, whole[1].seconds)


def test_a_kill_between_checkpoint_and_result_costs_nothing(finished, whole):
    (finished / "arms" / "dro" / "seed1" / "result.json").unlink()
    assert numbers(resume(finished)) == numbers(whole[1]) and journal(finished) == journal(whole[0])


# ------------------------------------------------------------------------------------------ the real command

DIGITS = ("recipe.seeds=1", "recipe.log_every=1", "recipe.evaluate_every=50", "recipe.checkpoint_every=20")
STEER = (sys.executable, "-m", "steering")


def command(folder: Path) -> list[str]:
    sets = [word for setting in DIGITS for word in ("--set", setting)]
    return [*STEER, "run", "digits", "--arms", "erm,drrho_kl", "--out", str(folder), *sets]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict, list[dict]]:
    """Numbers and journal of the run that nobody stopped."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    done = subprocess.run(command(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and (folder / "report.html").stat().st_size > 10_000
    assert done.stdout.splitlines()[-1] == f"report: {folder}/report.html"
    return numbers(Summary.model_validate_json((folder / "summary.json").read_text())), journal(folder)


def send(folder: Path, number: int, after: int) -> subprocess.CompletedProcess[str]:
    """Starts a run and sends it a signal when its journal has so many lines."""
    running = subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= after) and running.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)
    running.send_signal(number)
    out, err = running.communicate(timeout=120)
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("number, code, after", [(signal.SIGINT, 130, 25), (signal.SIGTERM, 143, 190)])
def test_a_signal_ends_the_command_with_one_line_and_the_resumed_run_is_the_same(
    tmp_path, uninterrupted, number, code, after
):
    folder = tmp_path / "a run"
    ended = send(folder, number, after)
    assert ended.returncode == code, ended.stderr
    (line,) = ended.stderr.splitlines()
    ending = r"all that is finished is saved\. Go on with: (.*)"
    match = re.fullmatch(rf"steer: stopped after step (\d+) of \w+, seed 0; {ending}", line)
    assert match and match[2] == f"steer run --resume '{folder}'"
    arm = "erm" if after < 150 else "drrho_kl"
    assert loop.checkpoint.load(folder / "arms" / arm / "seed0" / "checkpoint.pt")["done"] == int(match[1])
    assert (numbers(resume(folder)), journal(folder)) == uninterrupted


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_same_numbers(tmp_path, uninterrupted):
    ended = send(tmp_path / "run", signal.SIGKILL, 175)
    assert ended.returncode == -signal.SIGKILL
    assert (numbers(resume(tmp_path / "run")), journal(tmp_path / "run")) == uninterrupted
