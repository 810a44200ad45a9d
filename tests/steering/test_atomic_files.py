"""A file is whole or as it was before, whatever happens in between."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steering import RunError, atomic_files


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text \u00e9", b"bytes", lambda path: path.write_text("by a function")])
def test_a_file_is_written_into_a_folder_that_is_made(tmp_path, content):
    path = atomic_files.write(tmp_path / "a" / "b.txt", content)
    assert path.read_bytes() in ("text \u00e9".encode(), b"bytes", b"by a function")
    assert left(path.parent) == ["b.txt"] and path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt, RunError, OSError])
def test_content_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, mistake):
    def content(path: Path) -> None:
        path.write_text("half")
        raise mistake("gone wrong")

    atomic_files.write(tmp_path / "a", "old")
    with pytest.raises(RunError if mistake is OSError else mistake, match="gone wrong"):
        atomic_files.write(tmp_path / "a", content)
    assert (tmp_path / "a").read_text() == "old" and left(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    atomic_files.write(tmp_path / "a", "old")
    monkeypatch.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
    message = "cannot write .*a: No space left on device. Free some space or choose another folder with --out$"
    with pytest.raises(RunError, match=message):
        atomic_files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and left(tmp_path) == ["a"]


def test_a_folder_under_a_file_is_told_in_one_line(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RunError, match=r"cannot write .*b: (Not a directory|File exists)\. Choose another"):
        atomic_files.write(tmp_path / "a" / "b", "new")
    with pytest.raises(RunError, match=r"cannot make .*b: Not a directory\. Choose another"):
        atomic_files.make_folder(tmp_path / "a" / "b")
    with pytest.raises(RunError, match=r"cannot make"):
        atomic_files.allocate(tmp_path / "a" / "b", 8)


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    atomic_files.write(tmp_path / "a", "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from steering import atomic_files\n"
        "def content(path): path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_files.write(Path(sys.argv[1]), content)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"


def test_allocated_space_is_zero_at_first_and_kept_afterwards(tmp_path):
    path = atomic_files.allocate(tmp_path / "deep" / "a.bin", 100_000)
    assert path.read_bytes() == bytes(100_000)
    assert path.stat().st_blocks * 512 >= 100_000  # taken, not only promised
    path.write_bytes(b"x" * 100_000)
    assert atomic_files.allocate(path, 100_000).read_bytes() == b"x" * 100_000


def test_allocating_on_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match=r"cannot write .*a.bin: No space left on device\. Free"):
        atomic_files.allocate(tmp_path / "a.bin", 8)


def test_json_is_written_with_a_last_line_end(tmp_path):
    text = atomic_files.write_json(tmp_path / "a.json", {"b": [1, None]}).read_text()
    assert json.loads(text) == {"b": [1, None]} and text.endswith("}\n")
