"""The report of a curve, and its numbers for programs."""

from dataclasses import asdict
from typing import Any

from steering.reports.report import Report
from steering.runs.statistics import Interval
from steering.theory_checks.curve import tables, words
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.figures import draw
from steering.theory_checks.curve.plan import REFERENCE
from steering.theory_checks.curve.settings import Setting
from steering.theory_checks.curve.tuning import Chosen


def report(found: Analysis, chosen: Chosen, setting: Setting | None, command: str) -> Report:
    """The report of a whole curve.

    Args:
        found: all outcomes.
        chosen: what was tuned, or nothing.
        setting: whose earlier gains to compare with, if any.
        command: what was typed.
    """
    grids = [
        tables.earlier_grid(found, setting) if setting is not None else None,
        tables.errors_grid(found),
        tables.gains_grid(found),
        tables.over_baseline_grid(found),
        tables.reach_grid(found),
        tables.cost_grid(found),
        tables.chosen_grid(found, chosen) if chosen else None,
    ]
    return Report(
        title=f"Data efficiency of {found.plan.task}",
        question=words.QUESTION,
        verdict=words.verdict(found),
        command=command,
        findings=words.findings(found),
        cautions=words.cautions(found, chosen),
        grids=[grid for grid in grids if grid is not None],
        plots=draw(found),
        method=[*words.METHOD, words.settings_words(found, chosen)],
        limits=words.LIMITS,
        numbers=numbers(found, chosen, setting),
    )


def numbers(found: Analysis, chosen: Chosen, setting: Setting | None) -> dict[str, Any]:
    """All that a program may want: errors of every seed, gains, samples to reach the reference, slopes, costs."""
    plan = found.plan
    made: dict[str, Any] = {
        "plan": plan.model_dump(mode="json"),
        "seeds": list(plan.seed_numbers()),
        "errors": {name: {str(n): found.errors(name, n) for n in plan.sizes} for name in [*found.names, REFERENCE]},
        "gains": {name: _gains(found, name) for name in [*found.names, REFERENCE] if name != plan.steered},
        "cost": {name: _costs(found, name) for name in found.names},
        "chosen": {f"{name}, n = {size}": method.model_dump(mode="json") for (name, size), method in chosen.items()},
    }
    if len(plan.sizes) > 1:
        made["reached"] = {name: _asdict(found.reached(name)) for name in found.names}
        made["saving"] = {name: _asdict(found.saving(name)) for name in found.names}
        made["slope"] = {name: _asdict(found.slope(name)) for name in found.names}
    if setting is not None:
        made["known"] = [
            asdict(earlier) | {"now": _interval(tables.gain_now(found, setting, earlier))}
            for earlier in setting.earlier
        ]
    return made


def seeds_table(found: Analysis) -> str:
    """Every training in a line, for spreadsheets and other software."""
    lines = ["method,n,seed,error,lowest_error,passes"]
    for (name, size, seed), outcome in found.outcomes.items():
        lines.append(f"{name},{size},{seed},{outcome.error!r},{outcome.lowest!r},{outcome.cost.passes}")
    return "\n".join(lines) + "\n"


def _gains(found: Analysis, other: str) -> list[dict[str, Any]]:
    return [
        {"size": gain.size, "adjusted": gain.adjusted, "verdict": gain.verdict} | _interval(gain.interval)
        for gain in found.gains(found.plan.steered, other)
    ]


def _costs(found: Analysis, name: str) -> dict[str, Any]:
    first = found.plan.first_seed
    return {
        str(size): (cost := found.outcomes[name, size, first].cost).model_dump() | {"passes": cost.passes}
        for size in found.plan.sizes
    }


def _interval(value: Interval) -> dict[str, Any]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "p": value.p}


def _asdict(value: Any) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
