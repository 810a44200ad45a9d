"""``steer curve`` as it is typed: what it writes, how it goes on after a kill, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from report_pages import shown
from rich.console import Console

from steering import UserError
from steering.clip.emoji_data import BUNDLE
from steering.reports.report import read
from steering.theory_checks.curve.command import execute, planned, run
from steering.theory_checks.curve.plan import SETTINGS, setting_of

SHORT = ["recipe.steps=4", "recipe.evaluate_every=2", "recipe.batch=20"]
FEW: dict[str, Any] = {"sizes": "20,40", "seeds": 2, "methods": "shuffled", "sets": SHORT}
TYPED = ["blobs", "--sizes", "20,40", "--seeds", "2", "--methods", "shuffled"]
TYPED += [word for text in SHORT for word in ("--set", text)]


@pytest.fixture
def plan():
    return planned("blobs", **FEW)


def parts(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "parts").rglob("*.json")}


def quiet():
    return Console(quiet=True)


@pytest.mark.slow
def test_what_is_there_is_not_trained_again_and_what_is_missing_is_made_alike(plan, tmp_path):
    execute(plan, tmp_path / "curve", jobs=1, console=quiet())
    before = parts(tmp_path / "curve")
    assert len(before) == 2 * (1 + 2 * 3)
    gone, kept = (tmp_path / "curve/parts/seed7001/n40" / name for name in ("shuffled.json", "erm.json"))
    gone.unlink()
    written = kept.stat().st_mtime_ns
    execute(plan, tmp_path / "curve", jobs=1, console=quiet())
    assert parts(tmp_path / "curve") == before and kept.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_report_is_written_with_all_errors_and_gains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["steer", "curve", "blobs"])
    run("blobs", setting=None, out=tmp_path, jobs=1, keep=None, **FEW)
    numbers = json.loads((tmp_path / "report.json").read_text())["numbers"]
    assert set(numbers["errors"]) == {"erm", "drrho_kl", "shuffled", "reference"}
    assert len(numbers["errors"]["erm"]["40"]) == 2 and len(numbers["gains"]["erm"]) == 2
    made = read(tmp_path)
    assert [plot.name for plot in made.plots] == ["errors", "gains", "budget"] and "docs/curve.md" in shown(made)
    lines = (tmp_path / "errors.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (1 + 2 * 3) and lines[0].startswith("method,n,seed,error")
    assert "2 seeds are few" in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_sizes_and_methods_may_be_added_but_nothing_else_changed(plan, tmp_path):
    execute(plan, tmp_path, jobs=1, console=quiet())
    written = {name: content for name, content in parts(tmp_path).items() if "erm" in name}
    extended = planned("blobs", **{**FEW, "sizes": "10,20,40", "seeds": 3, "methods": "dro"})
    analysis, _ = execute(extended, tmp_path, jobs=1, console=quiet())
    assert written.items() < parts(tmp_path).items()
    assert analysis.names == ["erm", "dro", "drrho_kl"] and analysis.table("dro").shape == (3, 3)
    for change, message in (({"sizes": "20,30"}, "options"), ({"sets": [*SHORT[:2], "recipe.batch=10"]}, "recipe")):
        with pytest.raises(UserError, match=f"holds a curve with other {message}: choose another --out"):
            execute(planned("blobs", **{**FEW, **change}), tmp_path, jobs=1, console=quiet())
    with pytest.raises(UserError, match="holds a curve with other filter: choose another --out"):
        for keep in (0.5, 0.6):
            execute(planned("blobs", **{**FEW, "methods": "filter"}, keep=keep), tmp_path, jobs=1, console=quiet())


def test_a_folder_with_other_files_is_left_alone(plan, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is no run folder"):
        execute(plan, tmp_path, jobs=1, console=quiet())


def test_a_damaged_plan_is_named(plan, tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        execute(plan, tmp_path, jobs=1, console=quiet())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": "10,x"}, "--sizes takes numbers of samples, 100,200,400 say; got '10,x'"),
        ({"sizes": "40,20"}, "sizes must rise, got 40,20"),
        ({"methods": "drrho_ql"}, "no method is named 'drrho_ql'; did you mean drrho_kl"),
        ({"tune": 1}, "--tune needs at least 2 values"),
    ],
)
def test_what_makes_no_curve_is_refused_in_one_line(options, message):
    with pytest.raises(UserError) as caught:
        planned("blobs", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_methods_may_be_chosen_but_those_all_is_compared_with_stay():
    assert list(planned("blobs", sizes="20", methods="filter").methods) == ["erm", "drrho_kl", "filter"]


def test_the_largest_size_is_the_pool():
    assert planned("digits", sizes="100,300").options["samples"] == 300
    assert planned("digits").sizes == [25, 50, 100, 200, 400, 800]
    assert max(planned("diabetes").sizes) == 250, "twice as many there are not"


def test_a_task_that_divides_its_data_itself_has_its_arms_alone_and_those_for_the_asking():
    plan = planned("clip", seeds=2)
    assert list(plan.methods) == ["unsteered", "drrho_clip", "jest"]
    assert plan.sizes == [188, 375, 750, 1500, 3000, 6000] and plan.label == "1 - held-out R@10"
    assert list(planned("clip", sizes="50", methods="fastclip").methods) == ["unsteered", "drrho_clip", "fastclip"]


def test_options_of_a_preset_and_those_that_are_typed_make_the_plan():
    typed = {"data": "emoji", "ref": f"local-dir:{BUNDLE}"}
    plan = planned("clip", sizes="60", preset="one-gpu", sets=["options.workers=0"], typed=typed)
    assert plan.options["model"] == "ViT-B-32" and plan.options["data"] == "emoji" and plan.baseline == "openclip"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_plan_of_its_own_size_and_seeds(name):
    setting = SETTINGS[name]
    plan = planned("digits", setting)
    assert (plan.sizes, plan.seeds, plan.options["samples"]) == ([setting.size], setting.seeds, setting.size)
    assert {earlier.other for earlier in setting.earlier} <= {*plan.methods, "reference"}
    for settings, made in ((setting.options, plan.options), (setting.recipe, plan.recipe.model_dump())):
        assert {key: made[key] for key in settings} == settings


def test_a_setting_of_another_task_or_name_is_refused():
    with pytest.raises(UserError, match="steer curve digits --setting A"):
        setting_of("A", "blobs")
    with pytest.raises(UserError, match="no setting is named 'C'"):
        setting_of("C", "digits")


def start(folder, jobs):
    command = [sys.executable, "-m", "steering", "curve", *TYPED, "--out", str(folder), "--jobs", str(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_parts(folder, process, number):
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if len(list(folder.glob("parts/**/[a-z]*.json"))) >= number:
            return
        time.sleep(0.02)
    raise AssertionError(f"ended before {number} parts were there: {process.communicate()}")


@pytest.mark.slow
def test_a_killed_curve_goes_on_to_the_same_files(plan, tmp_path):
    process = start(tmp_path / "killed", jobs=2)
    wait_for_parts(tmp_path / "killed", process, 3)
    process.kill()
    process.communicate()
    again = start(tmp_path / "killed", jobs=2)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert "report:" in out
    execute(plan, tmp_path / "whole", jobs=1, console=quiet())
    assert parts(tmp_path / "killed") == parts(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_says_how_to_go_on(tmp_path, jobs):
    process = start(tmp_path / "curve", jobs)
    wait_for_parts(tmp_path / "curve", process, 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("steer: stopped; all that is finished is saved. Go on with: steer curve blobs --sizes 20,40")
    assert err.count("\n") == 1 and f"--out {tmp_path / 'curve'}" in err


@pytest.mark.slow
def test_a_curve_of_pairs_is_trained_with_references_losses_of_pairs(tmp_path, capsys):
    sets = ["recipe.steps=2", "recipe.batch=16", "recipe.evaluate_every=0"]
    options = {"sizes": "64", "seeds": 2, "methods": "drrho_clip", "sets": sets}
    run("clip", setting=None, out=tmp_path / "a", jobs=1, keep=None, **options)
    report = (tmp_path / "a" / "report.md").read_text()
    assert "1 - held-out R@10" in report and "drrho_clip" in report
