"""Whatever stands in the place of a file of a run: one line, no traceback, no waiting, and nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import steer
from filelock import FileLock

from steering import RunError, UserError, atomic_files
from steering.runs import config as configs
from steering.runs import folder as folders
from steering.runs.folder import HOLDER, LOCK, RunFolder
from steering.runs.summary import Journal

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def put(path: Path, kind: str) -> None:
    """Something that is no file of ours."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "itself":
        path.symlink_to(path)
    else:
        path.write_text(kind)


KINDS = ["pipe", "folder", "endless", "itself"]

CONFIGS = {  # texts of config.yaml, and what their line says
    "an integer without end": ("recipe: {steps: " + "9" * 5000 + "}", "4300 digits"),
    "a hexadecimal one": ("recipe: {steps: -0x" + "f" * 5000 + "}", "4300 digits"),
    "one in an option": ("options: {samples: 0x" + "f" * 5000 + "}", "4300 digits"),
    "a sexagesimal one": ("recipe: {steps: " + "59:" * 3000 + "1}", ""),
    "deep lists": ("options: {a: " + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
    "deep groups": ("".join(" " * i + f"a{i}:\n" for i in range(400)), ""),
    "an alias bomb": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{y}: &{y} [{','.join(['*' + x] * 10)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
        "10000",
    ),
    "an alias of itself": ("a: &a [*a]", "recursive"),
    "references that double": (
        "".join(f"a{i}: ${{a{i + 1}}}${{a{i + 1}}}\n" for i in range(60)) + "a60: x",
        "references",
    ),
    "a reference to itself": ("device: ${device}", "ecursive"),
    "a million lines": ("\n".join(f"k{i}: 1" for i in range(60_000)), ""),
    "a large file": ("device: " + "x" * 2_000_000, "more than 1,000,000 bytes"),
    "a name of 100 kB": ("? " + "a" * 100_000 + "\n: 1", "no setting is named"),
    "an arm of 100 kB": ("recipe: {arms: {" + "a" * 100_000 + ": {}}, baseline: " + "a" * 100_000 + "}", ""),
    "an arm that is a path": ("recipe: {arms: {../../x: {}}, baseline: ../../x}", "an arm cannot be named"),
    "a sum without end": ("recipe: {arms: {a: {rule: 'kl(rho=" + "+".join("1" * 5000) + ")'}}, baseline: a}", "call"),
    "brackets without end": ("recipe: {arms: {a: {rule: 'kl(rho=" + "(" * 5000 + ")'}}, baseline: a}", "call"),
    "minus without end": ("recipe: {arms: {a: {rule: 'kl(rho=" + "-" * 9000 + "1)'}}, baseline: a}", "call"),
    "an integer in a call": ("recipe: {arms: {a: {rule: 'kl(rho=" + "9" * 5000 + ")'}}, baseline: a}", "call"),
    "a null byte": ("device: 'a\0b'", "unacceptable character"),
    "control characters": ('device: "\\e[2J\\u202e"', "no device is named"),
    "a lone surrogate": ('device: "\\ud800"', ""),
    "no text": ("\x1f\x8b\x08\udcff", "unacceptable character"),
    "a tag": ("task: !!python/object/apply:os.getpid []", "could not determine a constructor"),
    "a set": ("options: !!set {a}", "set"),
    "a number": ("5", "no settings"),
    "a list": ("- 1", "holds no settings"),
    "two documents": ("task: digits\n---\ntask: blobs", "expected a single document"),
    "threads without end": ("threads: 1000000000", "threads"),
    "seeds that are none": ("recipe: {seeds: .nan}", "recipe.seeds"),
    "a task that is a list": ("task: [1]", ""),
    "a key that is a list": ("? [1]\n: 2", "unhashable"),
}


def begun(_):
    raise UserError("begun")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_or_refused_in_one_line(name, monkeypatch, capsys):
    text, message = CONFIGS[name]
    Path("a.yaml").write_text(text, errors="surrogateescape")
    monkeypatch.setattr("steering.runs.run.Run.execute", begun)
    words = ["run", *["digits"] * ("task" not in text), "--config", "a.yaml"]
    code, _, err = steer(monkeypatch, capsys, *words)
    assert code == 2 and len(err) == 1 and message in err[0] and len(err[0]) < 2100, err
    assert all(letter.isprintable() for letter in err[0])


SETS = [
    "recipe.steps=" + "9" * 5000,
    "options.a=" + "[" * 900,
    "a=&a [*a]",
    "a=${a}",
    "a=${oc.env:NOBODY}",
    "a=!!python/object/apply:os.getpid []",
    "a.b.c",
    "recipe.arms.erm.rule=" + "(" * 900,
    "recipe=[1]",
    "[=1",
]


@pytest.mark.parametrize("setting", SETS)
def test_a_setting_that_is_typed_is_refused_in_one_line(setting):
    with pytest.raises(UserError) as caught:
        configs.resolve("digits", sets=[setting])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1100


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_configuration_file_is_refused_at_once(kind, monkeypatch, capsys):
    put(Path("a.yaml"), kind)
    for words in (["run", "digits", "--config", "a.yaml"], ["run", "--resume", "."]):
        put(Path("config.yaml"), kind)
        code, _, err = steer(monkeypatch, capsys, *words)
        assert code in (1, 2) and len(err) == 1, err


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run, not to be changed."""
    place = tmp_path_factory.mktemp("made") / "run"
    words = ["run", "digits", "--arms", "erm", "--steps", "2", "--seeds", "1", "--out", str(place)]
    subprocess.run([sys.executable, "-m", "steering", *words], check=True, capture_output=True)
    return place


FILES = ["summary.json", "metrics.jsonl", "environment.json", "arms/erm/seed0/result.json", "config.yaml", LOCK, HOLDER]
TEXTS = ["", "{}", "[]", "5", "[" * 100_000, '{"arms": {}}', "9" * 5000, "\x00"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_run_goes_on_or_says_in_one_line_which_of_its_files_is_in_the_way(made, name, monkeypatch, capsys):
    monkeypatch.setattr(folders, "PATIENCE", 0)
    monkeypatch.setattr("steering.runs.run.write_report", lambda *_: None)
    for index, kind in enumerate([*KINDS, *TEXTS]):
        run = Path(shutil.copytree(made, f"run{index}"))
        Path(run, "report.html").unlink()  # so that there is something to do
        put(run / name, kind)
        commands = [["run", "--resume", str(run)]]
        commands += [["report", str(run), "--out", "joined"], ["scaling", str(run)]] * (name == "summary.json")
        for words in commands:
            code, _, err = steer(monkeypatch, capsys, *words)
            assert code in (0, 1, 2) and len(err) == (code > 0), (kind[:20], words, err)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_no_file_is_refused_and_one_that_is_held_says_by_whom(kind, monkeypatch):
    monkeypatch.setattr(folders, "PATIENCE", 0)
    put(Path("a", LOCK), kind)
    with pytest.raises((UserError, RunError)), RunFolder.open(Path("a")):
        pass
    with RunFolder.open(Path("b")):
        assert "process" in Path("b", HOLDER).read_text()
    assert not Path("b", HOLDER).exists()
    Path("b", HOLDER).write_text("process 7 of ada since noon\n")
    with FileLock(Path("b", LOCK)), pytest.raises(UserError, match=r"\(process 7 of ada since noon\): wait for it"):
        with RunFolder.open(Path("b")):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_never_written_to_what_is_no_file(kind):
    put(Path("metrics.jsonl"), kind)
    with pytest.raises(RunError, match="is no file"):
        Journal(Path("metrics.jsonl"))


def test_nothing_is_added_to_a_file_elsewhere():
    Path("a").mkdir()
    Path("mine").write_text("mine")
    for name in ("metrics.jsonl", "errors.log"):
        Path("a", name).symlink_to("../mine")
    with pytest.raises(RunError, match="is no file"):
        Journal(Path("a", "metrics.jsonl"))
    with pytest.raises(RunError, match=r"^ZeroDivisionError$"), RunFolder.open(Path("a")):
        raise ZeroDivisionError
    assert Path("mine").read_text() == "mine"


def test_lines_that_are_no_records_are_left_out():
    record = {"arm": "a", "seed": 0, "step": 1}
    lines = ["5", "[]", "{}", '{"arm": 1}', "[" * 100_000, "9" * 5000, "", "\ufffd", json.dumps(record)]
    Path("metrics.jsonl").write_text("\n".join(lines))
    assert Journal(Path("metrics.jsonl")).records() == [record]


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 9))
def test_a_kill_at_any_of_the_first_writes_leaves_a_folder_that_is_taken_up_and_swept(at):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "calls, replace = 0, Path.replace\n"
        "def killed(path, target):\n"
        "    global calls; calls += 1\n"
        f"    if calls == {at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return replace(path, target)\n"
        "Path.replace = killed\n"
        "from steering.cli import main\n"
        "sys.argv = ['steer', *sys.argv[1:]]; main()"
    )
    words = ["run", "digits", "--arms", "erm", "--steps", "2", "--seeds", "1", "--out", "run"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    again = subprocess.run([sys.executable, "-m", "steering", *words], capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr == "", again.stderr
    assert not list(Path("run").rglob(f"*{atomic_files.TORSO}"))


def test_a_torso_alone_is_no_other_work_and_is_swept():
    Path("a").mkdir()
    Path("a", f".a.txt.12345678{atomic_files.TORSO}").write_text("half")
    with RunFolder.open(Path("a"), settings="a.txt", compare=lambda path: "settings"):
        pass
    assert {path.name for path in Path("a").iterdir()} - {LOCK} == {"a.txt", "environment.json"}


ERRORS = [  # what a library may raise, and what its line says to do
    (ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 8])"), "--batch"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "options.workers=0"),
    (RuntimeError("unable to open shared memory object </torch_7> in read-write mode"), "--shm-size"),
    (MemoryError(), "smaller --batch"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "recipe.micro_batch"),
    (RuntimeError("Could not determine home directory."), "without ~"),
    (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4217"), "--resume"),
    (OSError("HTTPSConnectionPool: Max retries exceeded (Failed to resolve host)\n" * 171), "files of this machine"),
    (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    (KeyError("a\x1b[2J\n"), "KeyError"),
    (AssertionError(), "AssertionError"),
    (ZeroDivisionError("division by zero"), "division by zero"),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "surrogates"),
    (Exception("x" * 1_000_000), "x"),
]


@pytest.mark.parametrize(("error", "advice"), ERRORS, ids=lambda value: type(value).__name__)
def test_any_exception_of_any_command_is_one_line_and_its_traceback_in_the_log(error, advice, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("steering.runs.config.resolve", fails)
        code, _, err = steer(patch, capsys, "run", "digits")
        assert code == 1 and len(err) == 1 and advice in err[0] and "STEER_DEBUG=1" in err[0] and len(err[0]) < 2100
        patch.setenv("STEER_DEBUG", "1")
        assert "Traceback (most recent call last):" in steer(patch, capsys, "run", "digits")[2]
    with pytest.raises(RunError, match=r"\(traceback: a/errors\.log\)$") as caught, RunFolder.open(Path("a")):
        fails()
    assert advice in str(caught.value) and "\n" not in str(caught.value)
    assert "Traceback (most recent call last):" in Path("a/errors.log").read_text(errors="replace")


def test_a_home_that_is_nobodys_is_one_line(monkeypatch, capsys):
    for words in (["variance", "~nosuchuser/x"], ["eval", "~nosuchuser/x"]):
        code, _, err = steer(monkeypatch, capsys, *words)
        assert code in (1, 2) and len(err) == 1, err


def test_a_message_lists_a_few_names_at_most():
    for kind in (UserError, RunError):
        message = str(kind(f"no arm is named 'x'. Known: {', '.join(f'arm{i}' for i in range(3000))}: choose one"))
        assert len(message) < 1100 and message.startswith("no arm") and message.endswith("choose one")
