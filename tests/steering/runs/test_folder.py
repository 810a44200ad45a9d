"""The folder of a run or check: what is refused, what is made once, and what Ctrl-C does."""

import json
import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from pydantic import BaseModel

from steering import RunError, UserError
from steering.runs.folder import LOCK, Interrupts, RunFolder, Stopped, new_folder, read_part, write_part


class Number(BaseModel):
    value: float


def written(path: Path) -> str:
    """Settings that go with whatever was there."""
    return path.read_text() + "again" if path.exists() else "first"


def opened(path: Path, **changes):
    return RunFolder.open(path, **{"settings": "a.txt", "compare": written, "command": ["steer", "x y"]} | changes)


def test_the_settings_and_what_was_typed_first_are_written_down(tmp_path):
    with opened(tmp_path / "a" / "b") as folder:
        assert (folder.path / "a.txt").read_text() == "first"
    with opened(folder.path, command=["steer", "z"]):
        assert (folder.path / "a.txt").read_text() == "firstagain"
    about = json.loads((folder.path / "environment.json").read_text())
    assert about["command"] == "steer 'x y'" and about["packages"]["torch"]


def test_a_folder_with_other_files_is_left_alone_unless_any_will_do(tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(UserError, match=r"is no run folder \(it has no a\.txt\) nor empty: choose another --out"):
        with opened(tmp_path):
            pass
    with pytest.raises(UserError, match="is no run folder"), opened(tmp_path / "thesis.tex"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with opened(tmp_path, settings=None):
        pass


def test_settings_that_do_not_fit_leave_the_folder_as_it_was(tmp_path):
    def refuse(path: Path) -> str:
        raise UserError("another run")

    with pytest.raises(UserError, match="another run"), opened(tmp_path / "a", compare=refuse):
        pass
    assert not (tmp_path / "a").exists()


def test_one_process_works_in_a_folder_at_a_time(tmp_path):
    message = "another process is at work in .*: wait for it, or choose another --out"
    with FileLock(tmp_path / LOCK), pytest.raises(UserError, match=message), opened(tmp_path):
        pass
    with opened(tmp_path):
        pass


def test_a_part_is_made_once_and_read_back(tmp_path):
    values = iter([1.0, 2.0])
    with opened(tmp_path) as folder:
        for _ in range(2):
            assert folder.part("b/c.json", Number, lambda: Number(value=next(values))).value == 1
    assert read_part(tmp_path / "b" / "c.json", Number) == Number(value=1)
    assert read_part(tmp_path / "none.json", Number) is None


@pytest.mark.parametrize("text", ["{", "{}", "\xff"])
def test_a_damaged_part_is_named(tmp_path, text):
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"c\.json is damaged: delete it, and that part is made again"):
        read_part(tmp_path / "c.json", Number)
    write_part(tmp_path / "c.json", Number(value=3))
    assert read_part(tmp_path / "c.json", Number) == Number(value=3)


def test_a_file_that_cannot_be_read_ends_the_work_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot read or write .*none: No such file or directory"), opened(tmp_path):
        (tmp_path / "none").read_text()


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "steer 'x y' --out {}"),
        ({"command": ["steer", "--out=a"]}, "steer --out=a"),
        ({"resume": "steer run --resume a"}, "steer run --resume a"),
    ],
)
def test_a_signal_ends_the_work_and_says_how_to_go_on(tmp_path, changes, command):
    message = rf"^stopped; all that is finished is saved\. Go on with: {command.format(tmp_path)}$"
    with pytest.raises(Stopped, match=message) as caught, opened(tmp_path, **changes):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not stopped")
    assert caught.value.signal == signal.SIGTERM
    with opened(tmp_path):  # the lock is free
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_training_the_first_signal_is_remembered_and_the_second_would_kill(number):
    before = signal.getsignal(number)
    with Interrupts("go on") as interrupts:
        with interrupts.training():
            assert not interrupts() and interrupts.received is None
            os.kill(os.getpid(), number)
            assert interrupts() and interrupts.received == number
            assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before
    assert str(interrupts.stopped("stopped after step 3")) == "stopped after step 3; go on"


def test_a_new_folder_has_the_first_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "Task-001").mkdir(parents=True)
    assert new_folder("my.module:Task") == Path("runs/Task-002")
