"""The report of a curve, and its numbers for programs."""

import math
from collections.abc import Sequence
from typing import Any

from steering.reports.grid import MISSING, PLUS_MINUS, Cell, Grid
from steering.reports.report import Report
from steering.runs.statistics import Interval, interval, paired_difference
from steering.runs.table import Format
from steering.theory_checks.curve import verdicts
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import REFERENCE, Method
from steering.theory_checks.curve.plots import draw
from steering.theory_checks.curve.settings import EarlierGain, Setting
from steering.theory_checks.curve.tuning import Chosen

Row = Sequence[Cell | str]
HOLM = "Colours and bold words count only what is decided after Holm's correction over the sizes of a row."
MISSING_CELL = Cell(MISSING, "quiet")
QUESTION = (
    "How many training samples does steering by a reference save, against plain training, against other uses of the "
    "same reference, and against the reference itself?"
)


def report(analysis: Analysis, chosen: Chosen, setting: Setting | None, command: str) -> Report:
    """What a curve says, beside the earlier gains of its setting if it has one."""
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
        "cost": {
            name: {
                str(size): cost.model_dump() | {"passes": cost.passes} for size, cost in analysis.costs(name).items()
            }
            for name in analysis.names
        },
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


def _interval(value: Interval) -> dict[str, Any]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "p": value.p}


def tables(analysis: Analysis, chosen: Chosen, setting: Setting | None) -> list[Grid]:
    """All of them, those there are numbers for."""
    steered, baseline, names = analysis.plan.steered, analysis.plan.baseline, [*analysis.names, REFERENCE]
    over = [(other, steered, other) for other in names if other != steered]
    methods = [(name, name, baseline) for name in names if name != baseline]
    against = f"{steered} against the others: error points gained"
    return [
        *([_earlier_gains(analysis, setting)] if setting is not None else []),
        _errors(analysis),
        _gain_grid(analysis, "over", against, over, f"Positive where {steered} errs less. {HOLM}"),
        _gain_grid(analysis, "method", f"All against {baseline}: error points gained", methods, HOLM),
        *([_reached(analysis)] if len(analysis.plan.sizes) > 1 else []),
        _cost_grid(analysis),
        *([_tuned(analysis, chosen)] if chosen else []),
    ]


def _errors(analysis: Analysis) -> Grid:
    """Test errors of every method at every size."""
    plan, style = analysis.plan, Format(analysis.plan.factor, 1)
    table = {name: [analysis.interval(name, size) for size in plan.sizes] for name in [*analysis.names, REFERENCE]}
    least = [min(style.number(x.mean) for x in column) for column in zip(*table.values(), strict=True)]

    def cell(x: Interval, best: str) -> Cell:
        return Cell(style.interval(x), "best" if style.number(x.mean) == best else "")

    rows = [[name, *map(cell, row, least)] for name, row in table.items()]
    title = f"{plan.heading}, mean of {plan.seeds} seeds"
    note = f"{PLUS_MINUS} is half the 95 % t interval over seeds. Least mean of a size in bold."
    return _of_sizes(analysis, "method", title, rows, note)


def _gain_grid(analysis: Analysis, head: str, title: str, pairs: Sequence[tuple[str, str, str]], note: str) -> Grid:
    """Paired differences, a row for each (name of the row, method, other method)."""
    style = Format(analysis.plan.factor, 2)
    rows = [
        [name, *(Cell(style.interval(gain.interval, sign=True), gain.verdict) for gain in analysis.gains(*pair))]
        for name, *pair in pairs
    ]
    return _of_sizes(analysis, head, title, rows, note)


def _reached(analysis: Analysis) -> Grid:
    """Samples to be as good as the reference, and how steeply the errors fall."""
    style, baseline, rows, reason = Format(analysis.plan.factor, 1), analysis.plan.baseline, [], ""
    for name in analysis.names:
        reached, saving, slope = analysis.reached(name), analysis.saving(name), analysis.slope(name)
        ends = "{} [{}, {}]".format(*map(style.number, slope.floor)) if slope.floor else ""
        floor, reason = Cell(ends) if ends else MISSING_CELL, reason or slope.reason
        times = MISSING_CELL if name == baseline else Cell(saving.words(1))
        exponent = f"{slope.exponent:.2f} [{slope.interval[0]:.2f}, {slope.interval[1]:.2f}]"
        rows.append([name, reached.words(), times, exponent, floor])
    heads = ["samples to reach the reference", f"as many times fewer than {baseline}", "slope b", "floor"]
    note = (
        "In brackets 95 % intervals of a bootstrap over seeds, the reference's error drawn with them. < and > are "
        "beyond the sizes that were tried. b is that of error = A / n^b; methods are not to be ranked by it: one that "
        "is better at every size may well be flatter."
    )
    note += f" No floor is fitted: {reason}." if all(row[-1] is MISSING_CELL for row in rows) else ""
    return Grid.of("Samples to be as good as the reference", ["method"], heads, rows, note)


def _cost_grid(analysis: Analysis) -> Grid:
    """What the trainings on the largest set took."""
    plan = analysis.plan
    size, rows = plan.sizes[-1], []
    for name in analysis.names:
        cost = analysis.costs(name)[size]
        counts = (cost.trained, cost.scored, cost.referred, cost.passes, cost.reference_samples)
        lowest = Format(plan.factor, 1).interval(interval(analysis.lowest(name, size)))
        rows.append([name, *(f"{count:,}" for count in counts), lowest])
    return Grid.of(
        f"What it takes, n = {size}: samples",
        ["method"],
        ["trained on", "scored", "by the reference", "passes", "reference's own", "error at the best step"],
        rows,
        "Passes: 3 a sample of a gradient step (forward 1, backward 2), 1 a sample that is scored or that the "
        "reference looks at, which it does once a sample. The reference's own training is not among the passes. The "
        "best step is chosen by the test set, which no real training could.",
    )


def _earlier_gains(analysis: Analysis, setting: Setting) -> Grid:
    """Gains that were measured before, and the same now."""
    plan, rows = analysis.plan, []
    for earlier in setting.earlier:
        now = gain_now(analysis, setting, earlier)
        name = f"{earlier.other}, at its best step" if earlier.lowest else earlier.other
        before = f"+{earlier.gain:.2f} {PLUS_MINUS} {earlier.half:.2f}"
        # Two independent measurements agree if they differ by no more than their half widths, added in squares.
        agree = now.half is not None and abs(earlier.gain - 100 * now.mean) <= math.hypot(earlier.half, 100 * now.half)
        answer = "" if now.half is None else "yes" if agree else "no"
        rows.append([name, before, Format(plan.factor, 2).interval(now, sign=True), answer])
    heads = ["before", f"now, seeds {plan.first_seed} to {plan.first_seed + plan.seeds - 1}", "agree"]
    note = "Half widths of 95 % t intervals. Two gains agree if they differ by less than both half widths make up."
    return Grid.of(f"{plan.steered}, error points gained at n = {setting.size}", ["over"], heads, rows, note)


def gain_now(analysis: Analysis, setting: Setting, earlier: EarlierGain) -> Interval:
    """The gain of these outcomes at a setting's size."""
    other = (analysis.lowest if earlier.lowest else analysis.errors)(earlier.other, setting.size)
    return paired_difference(analysis.errors(analysis.plan.steered, setting.size), other, "low")


def _tuned(analysis: Analysis, chosen: Chosen) -> Grid:
    """The settings that tuning chose."""
    sizes = analysis.plan.sizes
    rows = [[name, *(_parameters(chosen[name, size]) for size in sizes)] for name in analysis.names]
    note = f"Weight decay, then the method's own parameter. Chosen on {analysis.plan.tuning_seeds} seeds apart."
    return _of_sizes(analysis, "method", "What was tuned", rows, note)


def _parameters(method: Method) -> str:
    parameter = method.arm.rule.partition("(")[2].rstrip(")")
    if method.arm.distill or method.data == "filtered":
        parameter = f"distill {method.arm.distill:g}" if method.arm.distill else f"keep {method.keep:g}"
    return ", ".join(filter(None, [f"{method.weight_decay:g}", parameter]))


def _of_sizes(analysis: Analysis, head: str, title: str, rows: Sequence[Row], note: str) -> Grid:
    return Grid.of(title, [head], [f"n = {size}" for size in analysis.plan.sizes], rows, note)
