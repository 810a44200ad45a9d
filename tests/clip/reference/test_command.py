"""``steer cache`` as it is typed: what it says, what it refuses, and how it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steering.clip.data.shards import Shards
from steering.clip.emoji_data import BUNDLE
from steering.clip.models import build, export
from steering.clip.reference import command as cache_command
from steering.clip.reference.cache import Cache, Manifest
from steering.clip.task import Clip
from steering.errors import UserError

BUNDLED = f"local-dir:{BUNDLE}"


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def steer(*options: str, folder: Path) -> subprocess.Popen:
    """The command as a terminal starts it: whoever runs the tests may ignore Ctrl-C, and it would inherit that."""
    command = [sys.executable, "-m", "steering", "cache", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, preexec_fn=_hear, **pipes)  # type: ignore[call-overload]


def run(data, ref=BUNDLED, out=None, device="cpu", check=False):
    cache_command.run(Clip(data=data, ref=ref), out, batch=8, workers=0, device=device, check=check)


def test_it_tells_what_is_in_the_cache_and_how_to_train_with_it(tars, tmp_path, capsys):
    data = tars(3, broken=(1, 2))
    for made in (3, 0):
        run(data, out=tmp_path / "features")
        report = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert (
            f"shards 3 of 3, {made} of them made by this process pairs 60 without features 2 not a picture 2" in report
        )
        assert f"--data '{data}' --ref '{BUNDLED}' --set options.cache={tmp_path / 'features'}" in report
    assert ("pairs per second nothing was left to do" in report) and Manifest.read(tmp_path / "features").width == 96


def test_without_a_folder_it_chooses_one_by_model_and_content(tars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tars(1))
    (folder,) = (tmp_path / "features").iterdir()
    assert folder.name == f"emoji-rn32-{Manifest.read(folder).key[:8]}"


def test_the_cache_of_another_model_is_refused_and_left_alone(tars, tmp_path):
    data, out = tars(1), tmp_path / "features"
    run(data, out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = export(build("emoji-rn32"), tmp_path / "other")
    with pytest.raises(UserError, match=r"holds features of --ref [^\n]* choose another folder with --out$"):
        run(data, ref=f"local-dir:{other}", out=out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_check_makes_faulty_files_again(tars, tmp_path, capsys):
    data, out = tars(2), tmp_path / "features"
    run(data, out=out)
    path = sorted((out / "shards").iterdir())[0]
    full = path.read_bytes()
    path.write_bytes(full[:-1] + bytes([full[-1] ^ 1]))
    run(data, out=out, check=True)
    assert "1 files were damaged: made again" in capsys.readouterr().out
    assert not Cache(out, Manifest.read(out)).fault(Shards.open(data).index[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ref": f"{BUNDLED} + {BUNDLED}"}, "one reference"),
        ({"device": "tpu"}, "no device is named 'tpu'"),
        ({"device": "cuda:99"}, "torch sees .* CUDA devices: use --device cpu"),
    ],
)
def test_options_that_cannot_be_are_refused(tars, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(tars(1), out=tmp_path / "features", **options)
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_typed_it_fills_and_a_mistake_is_one_line(tars, tmp_path):
    data = tars(2)
    process = steer("--data", data, "--ref", BUNDLED, "--workers", "2", folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "2 of 2, 2 of them made" in out, err
    process = steer("--data", str(tmp_path / "none.tar"), folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and err.startswith("steer: "), err


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_ends_with_the_table_and_the_same_command_continues(tars, tmp_path, workers):
    options = [
        "--data",
        tars(60, pairs=20),
        "--ref",
        BUNDLED,
        "--out",
        "features",
        "--batch",
        "2",
        "--workers",
        workers,
    ]
    process = steer(*options, folder=tmp_path)
    while len(list(tmp_path.glob("features/shards/*.safetensors"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "of 60, " in out and "Traceback" not in err, err
    assert "the same command continues" in out
    kept = len(list(tmp_path.glob("features/shards/*.safetensors")))
    assert 2 <= kept < 60
    process = steer(*options, folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and f"60 of 60, {60 - kept} of them made" in out, err
