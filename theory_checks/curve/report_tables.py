"""The tables of a curve."""

from collections.abc import Sequence

from steering.reports.grid import MISSING, PLUS_MINUS, Cell, Grid, Tone, cells, columns
from steering.runs.statistics import Interval, interval, paired_difference
from steering.runs.table import Format
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import REFERENCE, Method
from steering.theory_checks.curve.settings import Known, Setting
from steering.theory_checks.curve.tuning import Chosen

Row = tuple[Cell, ...]
HOLM = "Colours and bold words count only what is decided after Holm's correction over the sizes of a row."
MISSING_CELL = Cell(MISSING, "quiet")


def tables(analysis: Analysis, chosen: Chosen, setting: Setting | None) -> list[Grid]:
    """All of them, those there are numbers for."""
    steered, baseline = analysis.plan.steered, analysis.plan.baseline
    others = [name for name in [*analysis.names, REFERENCE] if name != steered]
    methods = [name for name in [*analysis.names, REFERENCE] if name != baseline]
    grids = [
        _errors(analysis),
        _gains(
            analysis,
            "over",
            f"{steered} against the others: error points gained",
            [(other, steered, other) for other in others],
            f"Positive where {steered} errs less. {HOLM}",
        ),
        _gains(
            analysis,
            "method",
            f"All against {baseline}: error points gained",
            [(name, name, baseline) for name in methods],
            HOLM,
        ),
    ]
    if setting is not None:
        grids.insert(0, _known(analysis, setting))
    if len(analysis.plan.sizes) > 1:
        grids.append(_reached(analysis))
    grids.append(_costs(analysis))
    return [*grids, _tuned(analysis, chosen)] if chosen else grids


def _errors(analysis: Analysis) -> Grid:
    """Test errors of every method at every size."""
    plan, names, style = analysis.plan, [*analysis.names, REFERENCE], Format(analysis.plan.factor, 1)
    table = [[analysis.interval(name, size) for size in plan.sizes] for name in names]
    best = [min(style.number(row[index].mean) for row in table) for index in range(len(plan.sizes))]
    rows = []
    for name, row in zip(names, table, strict=True):
        marked: list[tuple[Interval, Tone]] = [
            (x, "best" if style.number(x.mean) == least else "") for x, least in zip(row, best, strict=True)
        ]
        rows.append((Cell(name), *(Cell(style.interval(x), tone) for x, tone in marked)))
    title = f"{plan.label}{plan.unit}, mean of {plan.seeds} seeds"
    note = f"{PLUS_MINUS} is half the 95 % t interval over seeds. Least mean of a size in bold."
    return _of_sizes(analysis, "method", title, rows, note)


def _gains(analysis: Analysis, head: str, title: str, pairs: Sequence[tuple[str, str, str]], note: str) -> Grid:
    """Paired differences, a row for each (name of the row, method, other method)."""
    style = Format(analysis.plan.factor, 2)
    rows = []
    for name, method, other in pairs:
        gains = analysis.gains(method, other)
        rows.append((Cell(name), *(Cell(style.interval(gain.interval, sign=True), gain.verdict) for gain in gains)))
    return _of_sizes(analysis, head, title, rows, note)


def _reached(analysis: Analysis) -> Grid:
    """Samples to be as good as the reference, and how steeply the errors fall."""
    style, baseline, rows, reason = Format(analysis.plan.factor, 1), analysis.plan.baseline, [], ""
    for name in analysis.names:
        reached, saving, slope = analysis.reached(name), analysis.saving(name), analysis.slope(name)
        assert reached is not None and saving is not None and slope is not None
        floor = MISSING_CELL
        if slope.floor is not None:
            value, low, high = map(style.number, slope.floor)
            floor = Cell(f"{value} [{low}, {high}]")
        reason = reason or slope.reason
        times = MISSING_CELL if name == baseline else Cell(saving.words(1))
        exponent = f"{slope.exponent:.2f} [{slope.interval[0]:.2f}, {slope.interval[1]:.2f}]"
        rows.append((*cells(name, reached.words()), times, Cell(exponent), floor))
    heads = ["samples to reach the reference", f"as many times fewer than {baseline}", "slope b", "floor"]
    note = (
        "In brackets 95 % intervals of a bootstrap over seeds, the reference's error drawn with them. < and > are "
        "beyond the sizes that were tried. b is that of error = A / n^b; methods are not to be ranked by it: one that "
        "is better at every size may well be flatter."
    )
    note += f" No floor is fitted: {reason}." if all(row[-1] is MISSING_CELL for row in rows) else ""
    return Grid("Samples to be as good as the reference", columns(["method"], heads), tuple(rows), note)


def _costs(analysis: Analysis) -> Grid:
    """What the trainings on the largest set took."""
    plan = analysis.plan
    size, rows = plan.sizes[-1], []
    for name in analysis.names:
        cost = analysis.outcomes[name, size, plan.first_seed].cost
        counts = (cost.trained, cost.scored, cost.referred, cost.passes, cost.reference_samples)
        lowest = Format(plan.factor, 1).interval(interval(analysis.lowest(name, size)))
        rows.append(cells(name, *(f"{count:,}" for count in counts), lowest))
    heads = ["trained on", "scored", "by the reference", "passes", "reference's own", "error at the best step"]
    return Grid(
        title=f"What it takes, n = {size}: samples",
        columns=columns(["method"], heads),
        rows=tuple(rows),
        note="Passes: 3 a sample of a gradient step (forward 1, backward 2), 1 a sample that is scored or that the "
        "reference looks at, which it does once a sample. The reference's own training is not among the passes. The "
        "best step is chosen by the test set, which no real training could.",
    )


def _known(analysis: Analysis, setting: Setting) -> Grid:
    """Gains that were measured before, and the same now."""
    plan, rows = analysis.plan, []
    for known in setting.known:
        now = gain_now(analysis, setting, known)
        name = f"{known.other}, at its best step" if known.lowest else known.other
        before = f"+{known.gain:.2f} {PLUS_MINUS} {known.half:.2f}"
        agree = "" if now.half is None else ("yes" if agrees(known, 100 * now.mean, 100 * now.half) else "no")
        rows.append(cells(name, before, Format(plan.factor, 2).interval(now, sign=True), agree))
    seeds = f"seeds {plan.first_seed} to {plan.first_seed + plan.seeds - 1}"
    heads = (*columns(["over"], ["before", f"now, {seeds}"]), *columns(["agree"], []))
    note = "Half widths of 95 % t intervals. Two gains agree if they differ by less than both half widths make up."
    return Grid(f"{plan.steered}, error points gained at n = {setting.size}", heads, tuple(rows), note)


def gain_now(analysis: Analysis, setting: Setting, known: Known) -> Interval:
    """The gain of these outcomes at a setting's size."""
    other = (analysis.lowest if known.lowest else analysis.errors)(known.other, setting.size)
    return paired_difference(analysis.errors(analysis.plan.steered, setting.size), other, "low")


def agrees(known: Known, mean: float, half: float) -> bool:
    """Whether two independent measurements differ by no more than their intervals allow, added in squares."""
    return abs(known.gain - mean) <= (known.half**2 + half**2) ** 0.5


def _tuned(analysis: Analysis, chosen: Chosen) -> Grid:
    """The settings that tuning chose."""
    sizes = analysis.plan.sizes
    rows = [cells(name, *(_parameters(chosen[name, size]) for size in sizes)) for name in analysis.names]
    note = f"Weight decay, then the method's own parameter. Chosen on {analysis.plan.tuning_seeds} seeds apart."
    return _of_sizes(analysis, "method", "What was tuned", rows, note)


def _parameters(method: Method) -> str:
    if method.arm.distill:
        parameter = f"distill {method.arm.distill:g}"
    elif method.data == "filtered":
        parameter = f"keep {method.keep:g}"
    else:
        parameter = method.arm.rule.partition("(")[2].rstrip(")")
    return ", ".join([f"{method.weight_decay:g}", *([parameter] if parameter else [])])


def _of_sizes(analysis: Analysis, head: str, title: str, rows: Sequence[Row], note: str) -> Grid:
    return Grid(title, columns([head], [f"n = {size}" for size in analysis.plan.sizes]), tuple(rows), note)
