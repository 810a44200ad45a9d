"""The report of ``steer scaling``."""

import numpy as np

from steering.reports.grid import MINUS, MISSING, Cell, Column, Grid
from steering.reports.report import Report
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.scaling import figures
from steering.theory_checks.scaling.fit import Law
from steering.theory_checks.scaling.points import PUBLISHED_FITS, Point
from steering.theory_checks.scaling.study import Gap, Subset

METHOD = [
    "E = A C^-b by least squares of log error on log compute, every point with the same weight. Intervals of exponents "
    "and of their differences: 95 %, bootstrap over runs where the points name them, else over points, percentiles "
    "expanded for small numbers; points of two methods in the same setting are drawn together. Rows of few points and "
    "the split by axis: t intervals of the regression of log(error / baseline's error).",
    "E = E_inf + A C^-b is fitted where there are five sizes over one and a half decades, and used only where the "
    "interval of E_inf excludes zero or the smallest error.",
]
PUBLISHED = (
    "Published points: Wei et al. (2025), scaling figure, read off the picture to 0.3 to 0.6 percentage points; "
    "compute is forward GFLOPs a pair (14.78, 41.09, 175.33) times samples seen, without backward passes and "
    "without the reference. The printed fits are 5.77 C^-0.116 (OpenCLIP) and 7.15 C^-0.127 (DRRho-CLIP); which "
    "points they were fitted to is not said. 'published-six', ViT-B/32 and ViT-B/16 from 0.64 billion samples on, "
    "comes closest to both of all common subsets. 'Reading' intervals redraw every error with a standard deviation "
    "of 0.3 points."
)
LIMITS = [
    "An exponent alone ranks nothing: a method can be better at every compute and have the flatter law.",
    "A power law is a description of the range it was fitted to; nothing here speaks of what lies beyond.",
    "One training run a point leaves out how much another seed would have moved it.",
]


def report(
    subsets: list[Subset], points: list[Point], baseline: str, unit: str, published: bool, command: str
) -> Report:
    """Puts fits into words; the first subset is the one that is drawn."""
    first = subsets[0]
    plots = [figures.laws(points, first.points, first.laws, baseline, unit)]
    rows = [row for each in subsets for row in _rows(each, len(subsets) > 1)]
    if rows and len(first.gaps) == 1:
        plots.append(figures.gaps(rows, f"{first.gaps[0].method} {MINUS} {baseline}"))
    return Report(
        title="Scaling laws",
        question="How does the error fall with compute, and does one method's law fall more steeply than another's?",
        verdict=_verdict(subsets, baseline),
        command=command,
        findings=_findings(subsets, baseline, published),
        cautions=_cautions(subsets, published),
        grids=[_laws(subsets, published), *_gaps(subsets, baseline)],
        plots=plots,
        method=[*METHOD, *([PUBLISHED] if published else [])],
        limits=LIMITS,
        numbers=_numbers(subsets, baseline, unit),
    )


def _verdict(subsets: list[Subset], baseline: str) -> str:
    """What can be said of every gap, in every subset."""
    if not subsets[0].gaps:
        law = subsets[0].laws[baseline]
        return f"The error of {baseline} falls as compute to the power of {MINUS}{_spanned(law.exponent)}."
    said = []
    for place, gap in enumerate(subsets[0].gaps):
        found = [(each.name, each.gaps[place]) for each in subsets]
        words = [f"{_direction(gap.value, _ends(gap.read))} on {name}, by {_spanned(gap.value)}" for name, gap in found]
        said.append(f"{gap.method} is {', '.join(words)}")
    return f"Beside the law of {baseline}, that of {'; that of '.join(said)}."


def _direction(gap: Estimate, read: tuple[float, float] | None) -> str:
    """Decided only where neither chance nor the reading of a figure could have turned the sign."""
    low = min(gap.low, read[0] if read else gap.low)
    high = max(gap.high, read[1] if read else gap.high)
    return "steeper" if low > 0 else "flatter" if high < 0 else "undecided"


def _findings(subsets: list[Subset], baseline: str, published: bool) -> list[str]:
    said = []
    if published:
        said += [_reproduced(each) for each in subsets]
    for each in subsets:
        for gap in each.gaps:
            said.append(_meaning(each, gap, baseline))
    widest = max(subsets, key=lambda each: len(each.points))
    for gap in widest.gaps:
        if gap.axes:
            words = " and ".join(f"{_spanned(axis.gap)} along {axis.name}" for axis in gap.axes)
            said.append(
                f"Split by axis on {widest.name}, the exponent of {gap.method} exceeds {baseline}'s by {words}."
            )
            decided = [axis.name for axis in gap.axes if _direction(axis.gap, axis.read) == "steeper"]
            if decided == [gap.axes[1].name]:
                said.append(
                    "The difference comes with the size of the model: at a fixed size more samples do not widen the "
                    f"lead of {gap.method}. A law over compute mixes the two."
                )
    return said + _floors(widest)


def _floors(widest: Subset) -> list[str]:
    """Whether an error is left that no compute removes."""
    said = []
    known = [method for method, floor in widest.floors.items() if floor is not None and floor.identified]
    tried = [method for method, floor in widest.floors.items() if floor is not None]
    for method in known:
        floor = widest.floors[method]
        assert floor is not None
        above = f", above which b is {_spanned(floor.exponent)}"
        words = f"an error floor of {_spanned(floor.level)}{above}"
        said.append(
            f"{method} has {words if floor.level.low > 0 else f'no error floor above {_number(floor.level.high)}'}."
        )
    if len(known) < len(tried):
        names = ", ".join(method for method in tried if method not in known)
        said.append(f"Whether the error of {names} has a floor, the points cannot tell: plain slopes only.")
    return said


def _reproduced(each: Subset) -> str:
    words = [
        f"{law.method} {law.scale:.2f} C^{MINUS}{law.exponent.value:.4f} (printed {scale:.2f} C^{MINUS}{exponent:.3f})"
        for law in each.laws.values()
        for scale, exponent in [PUBLISHED_FITS[law.method]]
    ]
    return f"Fits on {each.name}: {'; '.join(words)}."


def _meaning(each: Subset, gap: Gap, baseline: str) -> str:
    """What a gap is in errors and in compute."""
    mine, theirs = each.laws[gap.method], each.laws[baseline]
    low, high = max(mine.computes[0], theirs.computes[0]), min(mine.computes[1], theirs.computes[1])
    ratios = [float(mine.error(end) / theirs.error(end)) for end in (low, high)]
    words = (
        f"On {each.name}, over {np.log10(high / low):.1f} decades of compute, {gap.method} has {ratios[0]:.3f} times "
        f"the error of {baseline} at the small end and {ratios[1]:.3f} times at the large one"
    )
    if theirs.exponent.low <= 0:
        return f"{words}."
    savings = [_compute_for(theirs, float(mine.error(end))) / end for end in (low, high)]
    return f"{words}; {baseline} would need {savings[0]:.2f} and {savings[1]:.2f} times the compute."


def _compute_for(law: Law, error: float) -> float:
    return (law.scale / error) ** (1 / law.exponent.value)


def _cautions(subsets: list[Subset], published: bool) -> list[str]:
    said = []
    if published:
        said.append(
            "These are one run a point, read off a figure: no interval here knows how another seed would differ."
        )
    for each in subsets:
        least = min(law.points for law in each.laws.values())
        alone = [law.method for law in each.laws.values() if not np.isfinite(law.exponent.low)]
        if alone:
            said.append(
                f"On {each.name} all points of {', '.join(alone)} are of one run or seed: no interval can be told."
            )
        elif least < 8:
            said.append(f"{each.name} fits {least} points a method: its bootstrap is rough.")
        flat = [law.method for law in each.laws.values() if law.exponent.low <= 0 and law.method not in alone]
        if flat:
            said.append(
                f"On {each.name} the error of {', '.join(flat)} does not clearly fall with compute: no law to speak of."
            )
    return said


def _laws(subsets: list[Subset], published: bool) -> Grid:
    columns = [Column("points", False), Column("method", False), Column("number"), Column("A"), Column("b [95 %]")]
    columns += [Column("printed b")] if published else []
    rows = []
    for each in subsets:
        for place, law in enumerate(each.laws.values()):
            texts = [each.name if place == 0 else "", law.method, str(law.points), f"{law.scale:.3g}"]
            texts += [_spanned(law.exponent, 4), f"{PUBLISHED_FITS[law.method][1]:.3f}" if published else ""]
            rows.append(tuple(Cell(text) for text in texts[: len(columns)]))
    return Grid("E = A C^-b", tuple(columns), tuple(rows))


def _gaps(subsets: list[Subset], baseline: str) -> list[Grid]:
    """Every method's exponent minus the baseline's, on all points and by axis."""
    grids = []
    for method in dict.fromkeys(gap.method for each in subsets for gap in each.gaps):
        rows = []
        for each in subsets:
            for gap in (gap for gap in each.gaps if gap.method == method):
                rows += [_line(words, value, read) for words, value, read in _parts(each, gap)]
        columns = (Column("points", False), Column("gap [95 %]"), Column("reading errors alone"), Column("law"))
        read = any(gap.read is not None for each in subsets for gap in each.gaps)
        kept = [0, 1, 2, 3] if read else [0, 1, 3]
        note = (
            "Decided where neither interval holds zero. Rows of few points: t intervals, too narrow by luck at times."
        )
        made = tuple(tuple(row[place] for place in kept) for row in rows)
        title = f"Exponent of {method} minus that of {baseline}"
        grids.append(Grid(title, tuple(columns[place] for place in kept), made, note if len(rows) > 2 else ""))
    return grids


def _parts(each: Subset, gap: Gap) -> list[tuple[str, Estimate, tuple[float, float] | None]]:
    """The gap as a whole, along its axes and in its groups, with the intervals of reading."""
    found: list[tuple[str, Estimate, tuple[float, float] | None]] = [(each.name, gap.value, _ends(gap.read))]
    found += [(f"  {axis.name}", axis.gap, axis.read) for axis in gap.axes]
    return found + [(f"  {words}", value, _ends(read)) for words, value, read in gap.groups]


def _ends(estimate: Estimate | None) -> tuple[float, float] | None:
    return None if estimate is None else (estimate.low, estimate.high)


def _line(words: str, value: Estimate, read: tuple[float, float] | None) -> tuple[Cell, ...]:
    direction = _direction(value, read)
    ends = MISSING if read is None else f"{_number(read[0])} to {_number(read[1])}"
    tone = "undecided" if direction == "undecided" else "better" if direction == "steeper" else "worse"
    return Cell(words), Cell(_spanned(value)), Cell(ends), Cell(direction, tone)


def _rows(each: Subset, several: bool) -> list[tuple[str, float, tuple[float, float], tuple[float, float] | None]]:
    """For the figure; groups only of the subset with most points, lest it becomes a list."""
    found = []
    for gap in each.gaps[:1]:
        for words, value, read in _parts(each, gap)[: 3 if several else None]:
            found.append((words.strip(), value.value, (value.low, value.high), read))
    return found


def _numbers(subsets: list[Subset], baseline: str, unit: str) -> dict:
    """Everything that was fitted."""
    return {
        "baseline": baseline,
        "compute": unit,
        "subsets": {
            each.name: {
                "points": [vars(point) for point in each.points],
                "laws": {
                    law.method: {"A": law.scale, "b": vars(law.exponent), "points": law.points}
                    for law in each.laws.values()
                },
                "floors": {
                    method: None
                    if floor is None
                    else {"E_inf": vars(floor.level), "b": vars(floor.exponent), "identified": floor.identified}
                    for method, floor in each.floors.items()
                },
                "gaps": {
                    gap.method: [
                        {"part": words.strip(), **vars(value), "read": read} for words, value, read in _parts(each, gap)
                    ]
                    for gap in each.gaps
                },
            }
            for each in subsets
        },
    }


def _number(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}".replace("-", MINUS)


def _spanned(estimate: Estimate, places: int = 3) -> str:
    value, low, high = (_number(number, places) for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
