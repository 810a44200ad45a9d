"""The command as it is typed: what it prints, with which exit code, and how much it loads to do so."""

import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import command_line
import pytest

from steering import registry
from steering.runs import config as configs
from steering.runs import run as runs
from steering.runs.folder import Stopped
from steering.runs.summary import finished

SMALL = ["--seeds", "1", "--steps", "2", "--batch", "20", "--set", "options.samples=60"]


@pytest.fixture
def steer(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty working directory; gives exit code and lines of both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(runs, "write_report", lambda *_: None)

    return partial(command_line.steer, monkeypatch, capsys)


# ------------------------------------------------------------------------------------------- what it prints


def test_the_version_is_the_one_that_is_installed(steer):
    assert steer("--version") == (0, [f"model-steering {version('model-steering')}"], [])


@pytest.mark.parametrize("words", [[], ["--help"], ["run", "--help"], ["list", "--help"]])
def test_help_fits_eighty_columns(steer, words):
    code, out, err = steer(*words)
    assert code == 0 and err == []
    assert max(map(len, out)) <= 80 and any("Usage: steer" in line for line in out)


def test_the_help_of_run_names_every_option_and_an_example(steer):
    text = "\n".join(steer("run", "--help")[1])
    for option in "ref model data arms rule selector reference-scale steps batch seeds device threads".split():
        assert f"--{option} " in text
    for words in ("--config", "--set", "--out", "--resume", 'steer run digits --rule "kl(rho=80)"'):
        assert words in text


@pytest.mark.parametrize("words", ["--help", "run --help", "run --bogus", "run bogus"])
def test_help_and_typing_mistakes_do_not_wait_for_torch(words):
    code = (
        f"import sys; sys.argv = ['steer', *{words.split()!r}]\n"
        "from steering.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (2 if "bogus" in words else 0) and "Traceback" not in done.stderr, done.stderr


def test_the_list_has_one_line_for_every_plugin(steer):
    code, out, err = steer("list")
    assert code == 0 and err == []
    expected = []
    for kind in get_args(registry.Kind):
        expected += [kind, *(f"  {name:<16} {registry.summary(kind, name)}" for name in registry.names(kind))]
    assert out == expected and len(out) > 12


def test_why_a_plugin_cannot_be_loaded_stands_in_its_line(steer, monkeypatch):
    monkeypatch.setattr(registry, "names", lambda kind: ["nowhere_at_all:X"] if kind == "rules" else [])
    assert any("cannot import nowhere_at_all" in line for line in steer("list")[1])


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "words, message",
    [
        ("bogus", "No such command 'bogus'."),
        ("run digits --stepz 3", "No such option: --stepz"),
        ("run", "no task given: steer run TASK. Known: blobs, clip, diabetes, digits"),
        ("run digist", "no task is named 'digist'; did you mean digits?"),
        ("run digits --steps 0", "recipe.steps: input should be greater than or equal to 1, got 0"),
        ("run digits --seeds -1", "Invalid value for '--seeds'"),
        ("run digits --batch 500", "a step needs 500 candidates"),
        ("run digits --device gpu", "no device is named 'gpu': use auto, cpu, cuda or cuda:0"),
        ("run digits --arms erm,drho_kl", "no arm is named 'drho_kl'; did you mean drrho_kl?"),
        ("run digits --rule kl(rho=-1)", "kl needs a rho above 0, got -1"),
        ("run digits --config no.yaml", "no configuration file at no.yaml"),
        ("run --resume nowhere", "nowhere is no run folder: it has no config.yaml"),
        ("run digits --resume nowhere", "--resume takes its settings from the run folder: give it alone"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(steer, words, message):
    code, out, err = steer(*words.split())
    assert (code, out, len(err)) == (2, [], 1)
    assert not Path("runs").exists()
    assert err[0].startswith(f"steer: {message}")


def test_a_run_that_cannot_be_written_is_one_line_and_exit_code_one(steer, tmp_path):
    (tmp_path / "a").write_text("")
    code, _, err = steer("run", "digits", "--out", "a/b")
    assert code == 1 and len(err) == 1
    assert err[0] == "steer: cannot make a/b: Not a directory. Choose another folder with --out"


@pytest.mark.slow
@pytest.mark.parametrize("redirected, code", [("> /dev/full", 1), (">&-", 0), ("2>&-", 0), ("| head -c 1", 0)])
def test_an_output_that_takes_no_more_is_one_line_at_most(redirected, code):
    line = f"{sys.executable} -m steering list {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={"RANK": "x", "LC_ALL": "C"})
    assert done.returncode == code and len(done.stderr.splitlines()) <= 1, done.stderr


def test_a_process_that_cannot_meet_the_others_is_told_how_to_start_them(steer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = steer("run", "digits")
    assert code == 2 and len(err) == 1 and "torchrun --nproc-per-node N" in err[0] and not Path("runs").exists()


def test_a_run_that_was_stopped_has_the_exit_code_of_its_signal(steer, monkeypatch):
    def stopped(*_):
        raise Stopped("stopped", signal.SIGTERM)

    monkeypatch.setattr(runs.Run, "execute", stopped)
    assert steer("run", "digits") == (143, [], ["steer: stopped"])


def test_an_interrupt_before_the_run_has_begun_is_no_traceback(steer, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "resolve", interrupted)
    code, out, err = steer("run", "digits")
    assert code == 130 and out == [] and len(err) <= 1


# ------------------------------------------------------------------------------------------------- runs


def test_options_reach_the_configuration_and_win_over_the_file(steer, tmp_path):
    (tmp_path / "my.yaml").write_text("task: blobs\nrecipe: {steps: 9, batch: 30}\nthreads: 2\n")
    words = ["--config", "my.yaml", "--threads", "1", "--device", "cpu", "--out", "here", *SMALL]
    assert (
        steer("run", *words, "--rule", "kl(rho=5)", "--selector", "top_k(keep=0.5)", "--reference-scale", "auto")[0]
        == 0
    )
    config = configs.load(tmp_path / "here" / "config.yaml")
    assert (config.task, config.threads, config.device, config.options) == (
        "blobs",
        1,
        "cpu",
        {"samples": 60, "noise": 0.4, "seed": 0},
    )
    assert (config.recipe.steps, config.recipe.batch, config.recipe.seeds) == (2, 20, 1)
    own = config.recipe.arms["steered"]
    assert (own.rule, own.selector, own.reference_scale) == ("kl(rho=5)", "top_k(keep=0.5)", "auto")


def test_a_run_without_a_folder_takes_the_next_free_number(steer, tmp_path):
    for number in (1, 2):
        code, out, err = steer("run", "blobs", "--arms", "erm", *SMALL)
        assert code == 0 and err == [] and out[-1] == f"report: runs/blobs-00{number}/report.html"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["blobs-001", "blobs-002"]


@pytest.mark.parametrize("more", [["--arms", "dro"], ["--rule", "kl(rho=5)"]])
def test_a_run_with_other_arms_than_the_recipe_resumes_and_runs_again(steer, tmp_path, more):
    assert steer("run", "blobs", "--out", "here", *SMALL, *more)[0] == 0
    before = (tmp_path / "here" / "config.yaml").read_text()
    assert steer("run", "--resume", "here")[0] == 0
    assert steer("run", "--config", "here/config.yaml", "--out", "there")[0] == 0
    assert (tmp_path / "there" / "config.yaml").read_text() == before == (tmp_path / "here" / "config.yaml").read_text()


def test_a_resumed_run_may_be_called_from_anywhere(steer, tmp_path, monkeypatch):
    assert steer("run", "blobs", "--out", "here", *SMALL)[0] == 0
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert steer("run", "--resume", str(Path("..") / "here"))[0] == 0


def test_the_same_command_again_continues_the_run(steer):
    assert steer("run", "blobs", "--out", "here", *SMALL)[0] == 0
    assert steer("run", "blobs", "--out", "here", *SMALL)[0] == 0
    code, _, err = steer("run", "blobs", "--out", "here", *SMALL, "--steps", "3")
    assert code == 2 and "recipe.steps 2 -> 3" in err[0]


def test_a_resumed_run_may_go_on_elsewhere_and_faster_but_not_otherwise(steer, tmp_path):
    """threads say how a run is computed, options.noise what."""
    assert steer("run", "blobs", "--steps", "4", "--seeds", "1", "--arms", "erm", "--out", "a")[0] == 0
    code, _, err = steer("run", "--resume", "a", "--threads", "2")
    assert code == 0, err
    assert "threads: 2" in Path("a/config.yaml").read_text()
    code, _, err = steer("run", "--resume", "a", "--set", "recipe.steps=5")
    assert code == 2 and "recipe.steps 4 -> 5" in err[0]


def test_a_finished_run_is_shown_again_and_nothing_is_done(steer, monkeypatch):
    typed = ["run", "blobs", "--out", "here", "--arms", "erm", *SMALL]
    first = steer(*typed)[1]
    Path("here/report.html").touch()
    before = Path("here/summary.json").stat().st_mtime_ns
    monkeypatch.setattr(runs.Run, "execute", lambda _: pytest.fail("begun again"))
    assert steer(*typed)[1] == first[2:], "all but the folder and what was being done"
    monkeypatch.setattr(configs, "resolve", lambda *_, **__: pytest.fail("the task was loaded"))
    assert steer("run", "--resume", "here")[1] == first[2:]
    assert Path("here/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["report.html", "arms/erm/seed0/result.json", "summary.json"])
def test_a_run_that_lacks_a_part_is_taken_up(steer, name):
    steer("run", "blobs", "--out", "here", "--arms", "erm", *SMALL)
    Path("here/report.html").touch()
    assert finished(Path("here")) is not None
    Path("here", name).unlink()
    assert finished(Path("here")) is None


@pytest.mark.slow
def test_a_finished_run_is_shown_without_its_task_and_the_training(tmp_path):
    call = [sys.executable, "-m", "steering", "run"]
    typed = ["digits", "--arms", "erm", "--seeds", "1", "--steps", "2", "--out", "here"]
    first = subprocess.run([*call, *typed], capture_output=True, text=True, cwd=tmp_path, check=True)
    code = (
        "import sys; sys.argv = ['steer', 'run', '--resume', 'here']\n"
        "from steering.cli import main\n"
        "try: main()\n"
        "finally: assert not {'sklearn', 'open_clip', 'steering.training', 'steering.tasks.digits'} & set(sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == first.stdout.splitlines()[2:], "without the folder and the reference"
