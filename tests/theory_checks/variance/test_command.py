"""The whole command: on a task, on its run, on candidates, and what it refuses."""

import json
import os
import signal
import subprocess
import sys

import pytest
from report_pages import shown

from steering import UserError
from steering.clip.emoji_data import BUNDLE
from steering.reports.report import read
from steering.runs import config as configs
from steering.runs.folder import Stopped
from steering.theory_checks.variance.command import run

SHORT = ["recipe.steps=3", "recipe.checkpoint_every=3", "recipe.evaluate_every=0"]
REFERENCE = f"local-dir:{BUNDLE}"


def numbers(folder):
    return json.loads((folder / "report.json").read_text())["numbers"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "say what to measure"),
        ({"target": "digits", "data": "x.tar"}, "--data and --proxy go with --ref"),
        ({"target": "digits", "refs": ["A", "B"]}, "leave out the task"),
        ({"refs": ["A", "A"]}, "name at least two different ones"),
        ({"target": "digit"}, "did you mean digits"),
        ({"target": "runs/nowhere"}, "runs/nowhere is no run folder: it has no config.yaml"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(asked, options, words):
    with pytest.raises(UserError, match=words):
        run(asked(**options))


def test_an_arm_of_a_run_that_is_not_there_is_named_with_what_to_do(asked, tmp_path):
    config, _ = configs.resolve("blobs")
    (tmp_path / "config.yaml").write_text(configs.text(config))
    with pytest.raises(UserError, match="has no erm of seed 0: finish it first, steer run --resume"):
        run(asked(target=str(tmp_path)))


@pytest.mark.slow
def test_a_task_is_trained_measured_and_reported_and_its_run_gives_the_same(asked, tmp_path, capsys):
    run(asked(target="blobs", seeds=2, sets=SHORT))
    found = numbers(tmp_path / "report")
    assert list(found["measured"]) == ["erm", "drrho_kl", "best model at hand"]
    assert found["measured"]["erm"]["seeds"] == 2 and found["leak"]["found"] is False
    assert [course[-1]["ratio"] for course in found["along_training"]] == found["measured"]["erm"]["ratios"]
    assert list(found["certificates"]) == ["erm", "drrho_kl"]
    made = read(tmp_path / "report")
    assert [plot.name for plot in made.plots] == ["ratios", "losses", "tails", "along"]
    assert "docs/variance.md" in shown(made)
    said = capsys.readouterr().out
    assert "2 seeds are too few" in said and "report:" in said
    run(asked(target=str(tmp_path / "report" / "run"), out=tmp_path / "again"))
    assert numbers(tmp_path / "again")["measured"]["erm"] == found["measured"]["erm"]


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again(asked, tmp_path):
    run(asked(target="blobs", seeds=1, sets=SHORT))
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "report").rglob("checkpoint.pt")}
    first = numbers(tmp_path / "report")
    run(asked(target="blobs", seeds=1, sets=SHORT))
    assert len(trained) == 4, "two arms, and two halves of the best model at hand"
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert numbers(tmp_path / "report") == first
    with pytest.raises(UserError, match="another configuration"):
        run(asked(target="blobs", seeds=1, sets=[*SHORT, "recipe.batch=50"]))


def test_a_stop_in_the_middle_of_training_says_how_the_measurement_goes_on(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("steering.training.loop.run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    advice = f"Go on with: steer variance --out {tmp_path / 'report'}"
    with pytest.raises(Stopped, match=advice) as caught:
        run(asked(target="blobs", seeds=1, sets=SHORT))
    assert caught.value.signal == signal.SIGTERM


@pytest.mark.slow
def test_the_worth_of_the_ranking_is_found_out_by_training(asked, tmp_path):
    run(asked(target="blobs", seeds=2, validate=True, sets=SHORT))
    found = numbers(tmp_path / "report")
    assert len(found["candidates"]) == 8 and len(found["errors"]) == 2
    assert all(-1 <= one["tau"]["value"] <= 1 for one in found["worth"].values())
    with pytest.raises(UserError, match="needs losses that are a classifier's"):
        run(asked(target="diabetes", seeds=1, validate=True, sets=SHORT, out=tmp_path / "other"))


@pytest.mark.slow
def test_candidates_are_ranked_on_the_bundled_pairs(asked, tmp_path):
    from steering.clip.models import EMOJI, build, export
    from steering.clip.reference.load import load_reference

    export(load_reference(REFERENCE), tmp_path / "copy")
    export(build(EMOJI), tmp_path / "random")
    refs = [f"local-dir:{tmp_path / 'random'}", f"local-dir:{tmp_path / 'copy'}"]
    run(asked(refs=refs, proxy=REFERENCE, pairs=60))
    first, last = numbers(tmp_path / "report")["ranked"]
    assert first["name"].endswith("copy") and first["first"] == 1
    assert first["ratio"]["value"] < 1e-3 < last["ratio"]["value"]
    assert len(first["views"]) == 6


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_two():
    call = [sys.executable, "-m", "steering", "variance", "nowhere"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
