"""The report of a curve, and its numbers for programs."""

from typing import Any

from steering.reports.report import Report
from steering.runs.statistics import Interval
from steering.theory_checks.curve import verdicts
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import REFERENCE
from steering.theory_checks.curve.plots import draw
from steering.theory_checks.curve.report_tables import gain_now, tables
from steering.theory_checks.curve.settings import Setting
from steering.theory_checks.curve.tuning import Chosen

QUESTION = (
    "How many training samples does steering by a reference save, against plain training, against other uses of the "
    "same reference, and against the reference itself?"
)


def report(analysis: Analysis, chosen: Chosen, setting: Setting | None, command: str) -> Report:
    """What a curve says.

    Args:
        analysis: all outcomes.
        chosen: what was tuned, or nothing.
        setting: whose earlier gains to compare with, if any.
        command: what was typed.
    """
    documentation = "Methods, intervals, tuning and limits are explained in docs/curve.md of model-steering."
    return Report(
        title=f"Data efficiency of {analysis.plan.task}",
        question=QUESTION,
        verdict=verdicts.verdict(analysis),
        command=command,
        findings=verdicts.findings(analysis),
        cautions=verdicts.cautions(analysis, chosen),
        grids=tables(analysis, chosen, setting),
        plots=draw(analysis),
        method=[verdicts.tuning(analysis, chosen), documentation],
        numbers=numbers(analysis, chosen, setting),
    )


def numbers(analysis: Analysis, chosen: Chosen, setting: Setting | None) -> dict[str, Any]:
    """All that a program may want: errors of every seed, gains, samples to reach the reference, slopes, costs."""
    plan, names = analysis.plan, [*analysis.names, REFERENCE]
    content: dict[str, Any] = {
        "plan": plan.model_dump(mode="json"),
        "seeds": list(plan.seed_numbers()),
        "errors": {name: {str(n): analysis.errors(name, n) for n in plan.sizes} for name in names},
        "gains": {name: _gains(analysis, name) for name in names if name != plan.steered},
        "cost": {name: _costs(analysis, name) for name in analysis.names},
        "chosen": {f"{name}, n = {size}": method.model_dump(mode="json") for (name, size), method in chosen.items()},
    }
    if len(plan.sizes) > 1:
        for part in ("reached", "saving", "slope"):
            content[part] = {name: getattr(analysis, part)(name) for name in analysis.names}
    if setting is not None:
        content["known"] = [
            vars(earlier) | {"now": _interval(gain_now(analysis, setting, earlier))} for earlier in setting.earlier
        ]
    return content


def seeds_table(analysis: Analysis) -> str:
    """Every training in a line, for spreadsheets and other software."""
    lines = ["method,n,seed,error,lowest_error,passes"]
    for (name, size, seed), outcome in analysis.outcomes.items():
        lines.append(f"{name},{size},{seed},{outcome.error!r},{outcome.lowest!r},{outcome.cost.passes}")
    return "\n".join(lines) + "\n"


def _gains(analysis: Analysis, other: str) -> list[dict[str, Any]]:
    return [
        {"size": gain.size, "adjusted": gain.adjusted, "verdict": gain.verdict} | _interval(gain.interval)
        for gain in analysis.gains(analysis.plan.steered, other)
    ]


def _costs(analysis: Analysis, name: str) -> dict[str, Any]:
    costs = {size: analysis.outcomes[name, size, analysis.plan.first_seed].cost for size in analysis.plan.sizes}
    return {str(size): cost.model_dump() | {"passes": cost.passes} for size, cost in costs.items()}


def _interval(value: Interval) -> dict[str, Any]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "p": value.p}
