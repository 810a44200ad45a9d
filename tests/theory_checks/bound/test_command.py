"""``steer bound`` from the command line to the report."""

import json
import signal

import pytest
from report_pages import shown

from steering import UserError
from steering.reports.report import as_json
from steering.runs import config as configs
from steering.runs.folder import Stopped
from steering.theory_checks.bound import command
from steering.theory_checks.bound.command import run
from steering.theory_checks.bound.report import report
from steering.theory_checks.bound.study import Extent, study

TINY = Extent(
    sizes=(100, 400, 1600),
    repetitions=20,
    spreads=(0.0, 0.05, 0.2),
    ratio_at=(400,),
    radii=(4,),
    own_sizes=(50, 400),
    own_repetitions=20,
    fitted_on=(100, 400),
    tight=(100,),
    distances=(1.0,),
    linear_sizes=(30, 60),
    rhos=(2.5,),
    fits=4,
    collapses=10,
    collapse_at=50,
    held_out=(50,),
    covers=50,
    ruled=1,
)


@pytest.fixture(scope="module")
def made():
    return report(study(TINY, 0, lambda words: None), "steer bound --quick")


@pytest.fixture(scope="module")
def numbers(made):
    return as_json(made)["numbers"]


def test_every_claim_has_a_verdict_and_top_k_no_theorem(numbers):
    claims = {claim["name"]: claim for claim in numbers["claims"]}
    assert {claim["verdict"] for claim in claims.values()} <= {"holds", "fails", "undecided", "no claim"}
    assert claims["rate of DRRho, CVaR half at R = 0"]["verdict"] == "no claim"
    assert claims["collapse at r = 0, rho = 2.5, n = 50"]["predicted"] == "58 % \u00b1 6"  # P(chi2_5 <= 5)
    assert claims["rate of DRRho, CVaR n-3.2\u221an at R = 0, were it a ball"]["verdict"] != "holds"


def test_a_small_simulation_says_that_it_is_one(made):
    assert any("rest on 4 samples" in caution for caution in made.cautions)


def test_the_report_shows_its_plots_and_every_cell_and_says_that_bounds_are_loose(made):
    assert [plot.name for plot in made.plots] == ["rates", "ratios", "own-reference", "linear", "bounds"]
    assert "docs/bound.md" in shown(made)
    assert any("never read them as predicted errors" in sentence for sentence in made.findings)


def test_the_same_seed_gives_the_same_claims_and_another_seed_others():
    small = Extent(**(vars(TINY) | {"radii": (), "covers": 5, "fits": 2, "repetitions": 5, "own_repetitions": 5}))
    first, again, other = (study(small, seed, lambda words: None).claims for seed in (0, 0, 1))
    assert first == again and first != other


def test_references_out_of_the_class_are_reported_with_both_exponents(numbers):
    claims = {claim["name"]: claim for claim in numbers["claims"] if claim["part"] == "own reference"}
    assert {f"exponent of m in the samples {name} needs" for name in ("ERM", "DRRho")} < set(claims)
    assert claims["ERM worse than a hypothesis 0.02 worse, n = 400"]["verdict"] == "no claim"
    assert [one["m"] for one in numbers["needed"]] == [100, 400]
    for one in numbers["needed"]:
        assert one["DRRho"]["low"] <= one["DRRho"]["value"] <= one["DRRho"]["high"]


@pytest.mark.parametrize(
    "folder, width, message",
    [(None, 1.0, "give it together with --run"), ("nowhere", None, "nowhere is no run folder")],
)
def test_what_does_not_go_together_is_said(folder, width, message, tmp_path):
    place = None if folder is None else tmp_path / folder
    with pytest.raises(UserError, match=message):
        run(run_folder=place, width=width, quick=True, seed=0, out=tmp_path)


def test_an_unfinished_run_is_named(tmp_path):
    config, _ = configs.resolve("blobs")
    (tmp_path / "config.yaml").write_text(configs.text(config))
    with pytest.raises(UserError, match=f"steer run --resume {tmp_path}"):
        run(run_folder=tmp_path, width=None, quick=False, seed=0, out=tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_simulation_with_a_word_and_no_folder(number, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "study", lambda *_: signal.raise_signal(number))
    with pytest.raises(Stopped, match="the same command starts anew") as stop:
        run(run_folder=None, width=None, quick=True, seed=0, out=tmp_path / "out")
    assert stop.value.signal == number and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_models_of_a_run_are_certified_on_their_held_out_losses(tmp_path, capsys):
    from rich.console import Console

    from steering.runs.run import Run

    config, task = configs.resolve("digits", typed={"recipe": {"steps": 40, "seeds": 1}})
    Run(config, task, tmp_path / "run", Console(quiet=True), ["steer"]).execute()
    run(run_folder=tmp_path / "run", width=None, quick=False, seed=0, out=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "report.json").read_text())["numbers"]["models"]
    assert [model["arm"] for model in told] == list(config.recipe.arms)
    for model in told:
        assert model["kind"] == "asymptotic" and model["upper"] > model["mean"]
    with pytest.raises(UserError, match=r"more than the width 0\.01"):
        run(run_folder=tmp_path / "run", width=0.01, quick=False, seed=0, out=tmp_path / "out")
