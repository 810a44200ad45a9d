"""The tables of a curve."""

from collections.abc import Sequence

from steering.reports.grid import MINUS, MISSING, PLUS_MINUS, Cell, Column, Grid, Tone
from steering.runs.statistics import Interval, interval, paired_difference
from steering.theory_checks.curve.analysis import Analysis, Gain
from steering.theory_checks.curve.plan import REFERENCE, Method
from steering.theory_checks.curve.settings import EarlierGain, Setting
from steering.theory_checks.curve.tuning import Chosen

Row = tuple[Cell, ...]
HOLM = "Colours and bold words count only what is decided after Holm's correction over the sizes of a row."


def errors_grid(found: Analysis) -> Grid:
    """Test errors of every method at every size."""
    plan = found.plan
    names = [*found.names, REFERENCE]
    table = [[found.interval(name, size) for size in plan.sizes] for name in names]
    best = [min(points(found, row[place].mean) for row in table) for place in range(len(plan.sizes))]
    rows = []
    for name, row in zip(names, table, strict=True):
        tones: list[Tone] = ["best" if points(found, x.mean) == best[place] else "" for place, x in enumerate(row)]
        rows.append((Cell(name), *(Cell(shown(found, x), tone) for x, tone in zip(row, tones, strict=True))))
    return Grid(
        title=f"{plan.label}{plan.unit}, mean of {plan.seeds} seeds",
        columns=(Column("method", number=False), *(Column(f"n = {size}") for size in plan.sizes)),
        rows=tuple(rows),
        note=f"{PLUS_MINUS} is half the 95 % t interval over seeds. Least mean of a size in bold.",
    )


def gains_grid(found: Analysis) -> Grid:
    """Gains of the steered method over all others, the reference among them."""
    others = [name for name in [*found.names, REFERENCE] if name != found.plan.steered]
    rows = [(Cell(name), *_gains(found, found.gains(found.plan.steered, name))) for name in others]
    title = f"{found.plan.steered} against the others: error points gained"
    return _of_sizes(found, "over", title, rows, f"Positive where {found.plan.steered} errs less. {HOLM}")


def over_baseline_grid(found: Analysis) -> Grid:
    """Gains of all methods over plain training."""
    plan = found.plan
    names = [name for name in [*found.names, REFERENCE] if name != plan.baseline]
    rows = [(Cell(name), *_gains(found, found.gains(name, plan.baseline))) for name in names]
    return _of_sizes(found, "method", f"All against {plan.baseline}: error points gained", rows, HOLM)


def reach_grid(found: Analysis) -> Grid | None:
    """Samples to be as good as the reference, and how steeply the errors fall."""
    if len(found.plan.sizes) < 2:
        return None
    rows: list[Row] = []
    for name in found.names:
        reached, saving, slope = found.reached(name), found.saving(name), found.slope(name)
        assert reached is not None and saving is not None and slope is not None
        floor = Cell(MISSING, "quiet")
        if slope.floor is not None:
            floor = Cell(
                f"{points(found, slope.floor[0])} [{points(found, slope.floor[1])}, {points(found, slope.floor[2])}]"
            )
        rows.append(
            (
                Cell(name),
                Cell(reached.words()),
                Cell(MISSING, "quiet") if name == found.plan.baseline else Cell(saving.words(1)),
                Cell(f"{slope.exponent:.2f} [{slope.interval[0]:.2f}, {slope.interval[1]:.2f}]"),
                floor,
            )
        )
    reason = next(slope.reason for name in found.names if (slope := found.slope(name)) is not None)
    heads = ["samples to reach the reference", f"as many times fewer than {found.plan.baseline}", "slope b", "floor"]
    note = (
        "In brackets 95 % intervals of a bootstrap over seeds, the reference's error drawn with them. < and > are "
        "beyond the sizes that were tried. b is that of error = A / n^b; methods are not to be ranked by it: one that "
        "is better at every size may well be flatter."
    )
    note += f" No floor is fitted: {reason}." if all(row[-1].tone == "quiet" for row in rows) else ""
    columns = (Column("method", number=False), *(Column(head) for head in heads))
    return Grid("Samples to be as good as the reference", columns, tuple(rows), note)


def cost_grid(found: Analysis) -> Grid:
    """What the trainings on the largest set took."""
    plan = found.plan
    size, seed = plan.sizes[-1], plan.first_seed
    rows: list[Row] = []
    for name in found.names:
        cost = found.outcomes[name, size, seed].cost
        counts = (cost.trained, cost.scored, cost.referred, cost.passes, cost.reference_samples)
        lowest = interval(found.lowest(name, size))
        rows.append((Cell(name), *(Cell(f"{count:,}") for count in counts), Cell(shown(found, lowest))))
    heads = ["trained on", "scored", "by the reference", "passes", "reference's own", "error at the best step"]
    return Grid(
        title=f"What it takes, n = {size}: samples",
        columns=(Column("method", number=False), *(Column(head) for head in heads)),
        rows=tuple(rows),
        note="Passes: 3 a sample of a gradient step (forward 1, backward 2), 1 a sample that is scored or that the "
        "reference looks at, which it does once a sample. The reference's own training is not among the passes. The "
        "best step is chosen by the test set, which no real training could.",
    )


def earlier_grid(found: Analysis, setting: Setting) -> Grid:
    """Gains that were measured before, and the same now."""
    rows: list[Row] = []
    for earlier in setting.earlier:
        now = gain_now(found, setting, earlier)
        before = f"+{earlier.gain:.2f} {PLUS_MINUS} {earlier.half:.2f}"
        words = f"{earlier.other}, at its best step" if earlier.lowest else earlier.other
        agree = "" if now.half is None else ("yes" if agrees(earlier, 100 * now.mean, 100 * now.half) else "no")
        rows.append((Cell(words), Cell(before), Cell(_signed(found, now)), Cell(agree)))
    seeds = f"seeds {found.plan.first_seed} to {found.plan.first_seed + found.plan.seeds - 1}"
    heads = (Column("over", number=False), Column("before"), Column(f"now, {seeds}"), Column("agree", number=False))
    note = "Half widths of 95 % t intervals. Two gains agree if they differ by less than both half widths make up."
    return Grid(f"{found.plan.steered}, error points gained at n = {setting.size}", heads, tuple(rows), note)


def gain_now(found: Analysis, setting: Setting, earlier: EarlierGain) -> Interval:
    errors = found.lowest if earlier.lowest else found.errors
    return paired_difference(found.errors(found.plan.steered, setting.size), errors(earlier.other, setting.size), "low")


def agrees(earlier: EarlierGain, mean: float, half: float) -> bool:
    """Whether two independent measurements differ by no more than their intervals allow, added in squares."""
    return abs(earlier.gain - mean) <= (earlier.half**2 + half**2) ** 0.5


def chosen_grid(found: Analysis, chosen: Chosen) -> Grid:
    """The settings that tuning chose."""
    rows = [(Cell(name), *(Cell(_own(chosen[name, size])) for size in found.plan.sizes)) for name in found.names]
    note = f"Weight decay, then the method's own parameter. Chosen on {found.plan.tuning_seeds} seeds apart."
    return _of_sizes(found, "method", "What was tuned", rows, note)


# ---------------------------------------------------------------------------------------------------- numbers


def points(found: Analysis, value: float, sign: bool = False, places: int = 1) -> str:
    """An error, or a difference of errors, as it is shown."""
    return format(value * found.plan.factor, f"{'+' if sign else ''}z.{places}f").replace("-", MINUS)


def shown(found: Analysis, values: Interval) -> str:
    mean = points(found, values.mean)
    return mean if values.half is None else f"{mean} {PLUS_MINUS} {points(found, values.half)}"


def _signed(found: Analysis, values: Interval) -> str:
    mean = points(found, values.mean, sign=True, places=2)
    return mean if values.half is None else f"{mean} {PLUS_MINUS} {points(found, values.half, places=2)}"


def _gains(found: Analysis, gains: Sequence[Gain]) -> list[Cell]:
    return [Cell(_signed(found, gain.interval), gain.verdict) for gain in gains]


def _own(method: Method) -> str:
    own = f"keep {method.keep:g}" if method.data == "filtered" else method.arm.rule.partition("(")[2].rstrip(")")
    if method.arm.distill:
        own = f"distill {method.arm.distill:g}"
    return f"{method.weight_decay:g}" + (f", {own}" if own else "")


def _of_sizes(found: Analysis, head: str, title: str, rows: Sequence[Row], note: str) -> Grid:
    columns = (Column(head, number=False), *(Column(f"n = {size}") for size in found.plan.sizes))
    return Grid(title, columns, tuple(rows), note)
