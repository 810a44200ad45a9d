"""metrics.jsonl through stops and kills."""

import json
from pathlib import Path

import pytest

from steering import RunError
from steering.runs.summary import Journal


def record(arm: str, seed: int, step: int) -> dict:
    return {"arm": arm, "seed": seed, "step": step, "loss": step / 3}


@pytest.fixture
def journal(tmp_path) -> Journal:
    journal = Journal(tmp_path / "metrics.jsonl")
    for arm, seed in (("erm", 0), ("kl", 0), ("kl", 1)):
        for step in (1, 2, 3):
            journal.add(record(arm, seed, step))
    return journal


def test_a_new_journal_is_an_empty_file(tmp_path):
    assert Journal(tmp_path / "metrics.jsonl").records() == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_is_one_record_and_is_there_at_once(journal):
    lines = journal.path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == journal.records() and len(lines) == 9


def test_an_old_journal_is_kept(journal):
    assert Journal(journal.path).records() == journal.records()


def test_cutting_forgets_what_comes_after_a_step_of_one_arm_and_seed(journal):
    before = journal.records()
    journal.cut("kl", 0, 1)
    assert journal.records() == [r for r in before if (r["arm"], r["seed"]) != ("kl", 0) or r["step"] <= 1]
    journal.add(record("kl", 0, 2))
    assert journal.records()[-1] == record("kl", 0, 2)


def test_a_line_that_a_kill_cut_short_is_forgotten_before_the_next(journal):
    with journal.path.open("a") as file:
        file.write('{"arm": "kl", "se')
    assert len(journal.records()) == 9
    journal.cut("kl", 1, 3)
    journal.add(record("kl", 1, 4))
    assert len(journal.records()) == 10 and len(journal.path.read_text().splitlines()) == 10


def test_a_whole_record_without_its_line_end_is_not_glued_to_the_next(journal):
    journal.path.write_text(journal.path.read_text().rstrip("\n"))
    journal.cut("kl", 1, 3)
    journal.add(record("kl", 1, 4))
    assert [r["step"] for r in journal.records() if r["arm"] == "kl" and r["seed"] == 1] == [1, 2, 3, 4]


def test_cutting_nothing_leaves_the_file_alone(journal):
    before = journal.path.stat()
    journal.cut("kl", 2, 0)
    assert journal.path.stat().st_ino == before.st_ino


def test_a_number_that_is_none_comes_back(journal):
    journal.add(record("kl", 2, 1) | {"loss": float("nan"), "scale": None})
    last = journal.records()[-1]
    assert last["loss"] != last["loss"] and last["scale"] is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_line(journal):
    journal.path = Path("/dev/full")
    with pytest.raises(
        RunError, match=r"cannot write /dev/full: No space left on device\. The last checkpoint is kept"
    ):
        journal.add(record("kl", 2, 1))
