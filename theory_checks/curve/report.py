"""The report of a curve: what it says in sentences, its tables, and its numbers for programs."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from steering.reports.grid import MISSING, PLUS_MINUS, Cell, Grid
from steering.reports.report import Report
from steering.runs.statistics import Interval, interval, paired_difference
from steering.runs.table import Format
from steering.theory_checks.curve.analysis import LEAST, LEAST_REFERENCE, Analysis, Gain
from steering.theory_checks.curve.plan import REFERENCE, EarlierGain, Method, Setting
from steering.theory_checks.curve.plots import draw
from steering.theory_checks.curve.tuning import Chosen, at_the_end

Row = Sequence[Cell | str]
HOLM = "Colours and bold words count only what is decided after Holm's correction over the sizes of a row."
MISSING_CELL = Cell(MISSING, "quiet")
QUESTION = (
    "How many training samples does steering by a reference save, against plain training, against other uses of the "
    "same reference, and against the reference itself?"
)
DOES = {
    "filter": "Dropping the samples of highest reference loss once, then training plainly,",
    "distill": "Learning the reference's answers beside the labels",
    "joined": "Plain training on the training samples and the reference's own",
    "shuffled": "The same with reference losses of other samples, a negative control,",
}
REQUIRED = "losses with outputs to distil from, and reference_batch() to join"


def report(analysis: Analysis, chosen: Chosen, setting: Setting | None, command: str) -> Report:
    """What a curve says, beside the earlier gains of its setting if it has one."""
    documentation = "Methods, intervals, tuning and limits are explained in docs/curve.md of model-steering."
    return Report(
        title=f"Data efficiency of {analysis.plan.task}",
        question=QUESTION,
        verdict=verdict(analysis),
        command=command,
        findings=findings(analysis),
        cautions=cautions(analysis, chosen),
        grids=tables(analysis, chosen, setting),
        plots=draw(analysis),
        method=[how_tuned(analysis, chosen), documentation],
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
        "In brackets 95 % intervals of a bootstrap over seeds. < and > are beyond the sizes that were tried. error = "
        "A / n^b; methods are not to be ranked by b: one that is better at every size may well be flatter."
    )
    note += f" No floor is fitted: {reason}." if all(row[-1] is MISSING_CELL for row in rows) else ""
    return Grid.of("Samples to be as good as the reference", ["method"], heads, rows, note)


def _cost_grid(analysis: Analysis) -> Grid:
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
        "Passes: 3 a sample of a gradient step, 1 a sample that is scored or that the reference looks at; its own "
        "training is not among them. The best step is chosen by the test set, which no real training could.",
    )


def _earlier_gains(analysis: Analysis, setting: Setting) -> Grid:
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


def verdict(analysis: Analysis) -> str:
    """The answer in a sentence."""
    plan = analysis.plan
    if len(plan.sizes) == 1:
        return _at_one_size(analysis)
    reached, base = (analysis.reached(name) for name in (plan.steered, plan.baseline))
    saving = analysis.saving(plan.steered)
    if reached.value.low == 0:
        smallest = f"from the smallest size on (n = {plan.sizes[0]})"
        return f"{plan.steered} is as good as the reference {smallest}, {plan.baseline} at {base.words()} samples."
    if reached.value.high == float("inf"):
        return f"{plan.steered} does not become as good as the reference within {plan.sizes[-1]} samples."
    end = "." if saving.interval.low > 1 else ", which may be chance."
    both = f"at {reached.words()} samples, {plan.baseline} at {base.words()}"
    return f"{plan.steered} is as good as the reference {both}: {saving.words(1)} times as many{end}"


def _at_one_size(analysis: Analysis) -> str:
    plan, style, parts = analysis.plan, Format(analysis.plan.factor, 1), []
    for other in (plan.baseline, REFERENCE):
        [gain] = analysis.gains(plan.steered, other)
        comparative = "more" if gain.interval.mean < 0 else "less"
        half = "" if gain.interval.half is None else f" \u00b1 {style.number(gain.interval.half)}"
        undecided = " (undecided)" if gain.verdict == "undecided" else ""
        parts.append(f"{style.number(abs(gain.interval.mean))}{half} points {comparative} than {other}{undecided}")
    return f"At n = {plan.sizes[0]}, {plan.steered} errs {' and '.join(parts)}."


def findings(analysis: Analysis) -> list[str]:
    """Further sentences, the most important first."""
    plan = analysis.plan
    over_baseline, over_reference = (analysis.gains(plan.steered, other) for other in (plan.baseline, REFERENCE))
    lines = []
    if len(plan.sizes) > 1:
        lines.append(f"{plan.steered} is {_counted(over_baseline)} than {plan.baseline}.")
        lines.append(f"{plan.steered} is {_counted(over_reference)} than {REFERENCE}.")
        pairs = zip(over_baseline, over_reference, strict=True)
        both = [a.size for a, b in pairs if a.verdict == b.verdict == "better"]
        if both:
            lines.append(f"It beats both {plan.baseline} and the reference at n = {_listed(both)}.")
    for name, description in DOES.items():
        if name in plan.methods:
            counted = _counted(analysis.gains(name, plan.steered))
            lines.append(f"{description} is {counted} than {plan.steered}, as far as these seeds tell.")
    return lines


def cautions(analysis: Analysis, chosen: Chosen) -> list[str]:
    """What to be careful about in these very numbers."""
    plan = analysis.plan
    lines = []
    if plan.seeds < LEAST:
        lines.append(f"{plan.seeds} seeds are few: {LEAST} or more decide, {LEAST_REFERENCE} against the reference")
    elif plan.seeds < LEAST_REFERENCE:
        lines.append(f"{plan.seeds} seeds are few for claims against the reference: use {LEAST_REFERENCE} or more")
    if not chosen and len(plan.sizes) > 1:
        lines.append("hyper-parameters are the same at every size, though the best ones change with n: see --tune")
    if chosen and (ends := at_the_end(plan, chosen)):
        lines.append(f"the best weight decay lies at an end of what was tried for {', '.join(ends)}: begin elsewhere")
    missing = [name for name in DOES if name not in plan.methods]
    if missing:
        lines.append(f"not compared: {', '.join(missing)} (left out, or the task has not what they need: {REQUIRED})")
    rising = [name for name in analysis.names if any(b > a for a, b in pairwise(analysis.table(name).mean(0)))]
    if rising:
        names = ", ".join(rising)
        lines.append(f"errors do not fall from size to size everywhere ({names}): the first crossing is told")
    return lines


def how_tuned(analysis: Analysis, chosen: Chosen) -> str:
    """How hyper-parameters were come by."""
    plan = analysis.plan
    if not chosen:
        return (
            "Hyper-parameters were frozen beforehand, the same at every size (numbers.plan in report.json has them); "
            "no result of these seeds chose any."
        )
    last = plan.first_tuning_seed + plan.tuning_seeds - 1
    return (
        f"Every method had the same number of trials at every size, {plan.tune} weight decays and {plan.tune} values "
        f"of its own parameter, on seeds {plan.first_tuning_seed} to {last}, which report nothing."
    )


def _counted(gains: Sequence[Gain]) -> str:
    """At which sizes what is decided."""
    sizes = {verdict: [gain.size for gain in gains if gain.verdict == verdict] for verdict in ("better", "worse")}
    decided = {verdict: at for verdict, at in sizes.items() if at}
    if len(gains) == 1:
        return "".join(decided) or "neither better nor worse"
    if not decided:
        return "neither better nor worse at any size"
    undecided = [gain.size for gain in gains if gain.verdict == "undecided"]
    parts = [f"{verdict} at n = {_listed(at)}" for verdict, at in decided.items()]
    return " and ".join(parts) + (f" (undecided at {_listed(undecided)})" if undecided else "")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
