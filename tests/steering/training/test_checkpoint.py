"""Checkpoints: plain data in, plain data out, and one line for any file that is none."""

import errno
import pickle
from pathlib import Path

import pytest
import torch

from steering import RunError, UserError
from steering.training import checkpoint


@pytest.fixture
def saved(make_training, tmp_path) -> Path:
    training = make_training(rule="kl(rho=8)", gamma=0.5)
    training.step()
    checkpoint.save(tmp_path / "c.pt", training.state_dict())
    return tmp_path / "c.pt"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    return str(caught.value)


def test_a_checkpoint_of_a_training_loads_without_running_code(saved):
    state = torch.load(saved, weights_only=True)
    assert state["done"] == 1 and state["steerer"]["memory"]["gamma"] == 0.5


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "x.pt") == f"no checkpoint at {tmp_path / 'x.pt'}"


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused_in_one_line(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    message = refusal(saved)
    assert message.startswith(f"the checkpoint {saved} cannot be read (") and "\n" not in message
    assert message.endswith("delete it to start that arm anew")


@pytest.mark.parametrize("content", [b"hello\n", b"PK\x03\x04", b"\x80\x02."])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    assert "\n" not in refusal(tmp_path / "c.pt")


def test_a_flipped_bit_is_never_taken_for_a_weight(saved):
    content = saved.read_bytes()
    offset = content.index(torch.load(saved, weights_only=True)["model"]["0.weight"].numpy().tobytes())
    saved.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    assert "check sum" in refusal(saved)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap works
    (tmp_path / "sprung").unlink()
    torch.save({"done": Trap()}, tmp_path / "c.pt")
    assert "cannot be read" in refusal(tmp_path / "c.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("first", ["no space", None])
def test_a_save_that_fails_leaves_the_checkpoint_of_before(saved, monkeypatch, first):
    """A full disk makes torch raise an OSError, a RuntimeError, or one after the other."""

    def full(state, file):
        file.write(b"half of it")
        try:
            if first:
                raise OSError(errno.ENOSPC, first)
        finally:
            raise RuntimeError("unexpected pos 64 vs 0\nframe #0: ...")

    before = saved.read_bytes()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=rf"cannot write .*c\.pt: {first or 'unexpected pos 64 vs 0'}\. Free some"):
        checkpoint.save(saved, {})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


# -- in the background ----------------------------------------------------------------------------------------


def test_what_changes_after_a_save_does_not_reach_the_file(tmp_path):
    state = {"done": 1, "model": {"w": torch.zeros(3)}, "groups": [{"lr": 0.1}]}
    with checkpoint.Saver(tmp_path / "c.pt") as saver:
        saver.save(state)
        state["model"]["w"] += 1
        state["groups"][0]["lr"] = 0.2
    kept = checkpoint.load(tmp_path / "c.pt")
    assert kept["model"]["w"].tolist() == [0, 0, 0] and kept["groups"] == [{"lr": 0.1}]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_few_checkpoints_are_kept(tmp_path, keep):
    with checkpoint.Saver(tmp_path / "c.pt", keep=keep) as saver:
        for step in range(0, 60, 10):
            saver.save({"done": step})
    kept = {path.name: checkpoint.load(path)["done"] for path in tmp_path.iterdir()}
    older = {f"c-{step:08d}.pt": step for step in (40, 30, 20)[: keep - 1]}
    assert kept == older | {"c.pt": 50}


def test_checkpoints_of_before_a_restart_are_kept_as_well(tmp_path):
    for steps in [(1, 2, 3), (4, 5, 6)]:
        with checkpoint.Saver(tmp_path / "c.pt", keep=6) as saver:
            for step in steps:
                saver.save({"done": step})
    kept = {path.name: checkpoint.load(path)["done"] for path in tmp_path.iterdir()}
    assert kept == {f"c-{step:08d}.pt": step for step in range(1, 6)} | {"c.pt": 6}


def test_a_save_that_failed_in_the_background_is_told_at_the_next_one(tmp_path, monkeypatch):
    saver = checkpoint.Saver(tmp_path / "c.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(RunError("disk full")))
        saver.save({"done": 1})
        with pytest.raises(RunError, match="disk full"):
            saver.wait()
    with saver:
        saver.save({"done": 2})
    assert checkpoint.load(tmp_path / "c.pt")["done"] == 2


def test_a_failure_in_the_background_is_not_lost_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(RunError("disk full")))
    with pytest.raises(RunError, match="disk full"), checkpoint.Saver(tmp_path / "c.pt") as saver:
        saver.save({"done": 1})


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".c.pt.x81k").write_bytes(b"half")
    (tmp_path / ".other.pt.x81k").write_bytes(b"not ours")
    with checkpoint.Saver(tmp_path / "c.pt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".other.pt.x81k"]


def test_files_of_others_and_of_a_training_before_do_not_count(tmp_path):
    """The user's own copy stays; a training that was begun anew clears what has more steps than itself."""
    (tmp_path / "c-best.pt").write_bytes(b"mine")
    for steps in [(5, 6, 7), (1, 2, 3, 4)]:
        (tmp_path / "c.pt").unlink(missing_ok=True)
        with checkpoint.Saver(tmp_path / "c.pt", keep=3) as saver:
            for step in steps:
                saver.save({"done": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-00000002.pt", "c-00000003.pt", "c-best.pt", "c.pt"]


def test_a_file_system_without_links_keeps_copies(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    with checkpoint.Saver(tmp_path / "c.pt", keep=2) as saver:
        for step in (1, 2):
            saver.save({"done": step})
    assert checkpoint.load(tmp_path / "c-00000001.pt")["done"] == 1
