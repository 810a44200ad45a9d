"""The studies in words: what each found, in tables, figures and sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from steering.curvature import plots
from steering.curvature.methods import WORDS
from steering.curvature.section import (
    Section,
    chosen,
    fewer,
    gain,
    nothing,
    number,
    said,
    share,
    signed,
    spread,
)
from steering.reports.grid import Cell, Column, Grid
from steering.runs.statistics import Interval, interval, paired_difference
from steering.settings import Metric

Found = Sequence[dict[str, Any]]
FIRST = {"regression": "linear probe, regression", "search": "curvature search, regression"}
PROBES = ("regression", "probe")
TEACHING = (
    "The two rows with regression fit the head by logistic regression (scikit-learn, C = 1), anew for every beta; "
    "the others train a new head and what the method learns by Adam with a cosine, each at the learning rate of "
    "lowest validation error. Batch norms keep their statistics. Learned curvature is one beta and one c for each "
    "channel; LoRA adds rank 1 to every layer but the head."
)
ATTACKS = (
    "Projected gradient descent (Madry et al. 2018), 20 steps of 2.5 radius / 20 by the sign of the gradient, 2 "
    "starts (one at the sample, one at random), projected onto ball and range outside the graph; the worst point "
    "met counts. A sample stands under both if neither the attack on the network itself nor the one made for its "
    "ReLU twin changes its class."
)
COUNTED = "A row's candidates are how many the validation split chose between; the test split saw the chosen one alone."


def transfer(found: Found, what: str) -> Section:
    """New classes for a trained network."""
    tests = {name: [repetition["rows"][name]["test"] for repetition in found] for name in found[0]["rows"]}
    labels = {name: {**FIRST, **WORDS}[name] for name in tests}
    probes = {name: "regression" if name == "search" else "probe" for name in tests if name not in PROBES}
    gains = {name: fewer(tests[name], tests[probe]) for name, probe in probes.items() if probe in tests}
    best = min(tests, key=lambda name: sum(tests[name]))
    against = [f"{labels[n]} against the linear probe trained like it: {said(g)}." for n, g in gains.items()]
    values = [[100 * value for value in repetition["search"]["validation"]] for repetition in found]
    curve = ("new classes", found[0]["search"]["betas"], values)
    sizes = {name: found[0]["rows"][name]["parameters"] for name in tests}
    return Section(
        changes={"new classes": gains["search"]},
        findings=[f"Of all ways to teach new classes, {labels[best]} made the fewest test errors.", *against[1:]],
        cautions=_missed(found),
        grids=[_methods(found, what, labels, tests, gains)],
        plots=[
            plots.methods({labels[name]: (sizes[name], tests[name]) for name in tests}),
            plots.searches("search", "What the search saw", [curve], "error (points)", "Validation error"),
        ],
        method=[f"New classes: {what}. {_sizes(found)} {TEACHING}"],
    )


def _methods(found: Found, what: str, labels, tests, gains) -> Grid:
    """Every method with its size, its test errors, and what the validation split chose."""
    lines = []
    for name, label in labels.items():
        of = [repetition["rows"][name] for repetition in found]
        picked = [repetition["search"]["chosen"] for repetition in found]
        told = f"beta {chosen(picked)}" if name == "search" else _rates(of)
        against = gain(gains[name]) if name in gains else nothing()
        cells = Cell(f"{of[0]['parameters']:,}"), share(tests[name]), against, Cell(str(of[0]["tried"]))
        lines.append((Cell(label), *cells, Cell(told, "quiet")))
    columns = ("method", False), ("learned", True), ("test error (%)", True), ("fewer errors than its probe", True)
    columns += ("candidates", True), ("chosen", True)
    return Grid(f"New classes: {what}", _columns(columns), tuple(lines), f"{_note(found)} {COUNTED}")


def _rates(of: Sequence[dict[str, Any]]) -> str:
    """What the validation split chose for the rows of a method."""
    name, _, _ = of[0]["chosen"].rpartition(" ")
    values = sorted({float(row["chosen"].rpartition(" ")[2]) for row in of})
    return f"{name} {chosen(values) if len(values) < 3 else f'{values[0]:g} to {values[-1]:g}'}"


def noise(found: Found) -> Section:
    """Wrong labels learned by heart."""
    labels = {
        "trained": "as it was trained",
        "search": "beta searched",
        "regression": "head fitted anew",
        "search_regression": "head fitted anew, beta searched",
    }
    tests = {name: [repetition["rows"][name]["test"] for repetition in found] for name in labels}
    pairs = {"search": "trained", "search_regression": "regression"}
    gains = {name: fewer(tests[name], tests[probe]) for name, probe in pairs.items()}
    lines = []
    for name, label in labels.items():
        picked = chosen([repetition["rows"][name]["chosen"] for repetition in found])
        tried = Cell(str(found[0]["rows"][name]["tried"]))
        against = gain(gains[name]) if name in gains else nothing()
        lines.append((Cell(label), share(tests[name]), against, tried, Cell(picked, "quiet")))
    columns = ("network", False), ("test error (%)", True), ("fewer errors than at beta = 1", True)
    columns += ("candidates", True), ("beta", True)
    title = "Wrong labels: a network trained on 40 % wrong labels"
    grid = Grid(title, tuple(Column(*c) for c in columns), tuple(lines), _note(found) + " " + COUNTED)
    curves = [
        (label, (first := found[0]["searches"][name])["betas"], _percent(found, name))
        for name, label in (("search", "head as trained"), ("search_regression", "head fitted anew"))
    ]
    assert first
    return Section(
        changes={"wrong labels": gains["search"], "wrong labels with a head fitted anew": gains["search_regression"]},
        grids=[grid],
        plots=[plots.searches("noise", "Wrong labels", curves, "error (points)", "Error on noisy validation samples")],
        method=[
            "Wrong labels: 40 % of the training and validation labels of scikit-learn's digits are replaced by "
            f"another class; the test labels are right. {_sizes(found)} At the end of training the network got "
            f"{share([one['fitted'] for one in found]).text} % of its own noisy labels wrong."
        ],
    )


def _percent(found: Found, name: str) -> list[list[float]]:
    return [[100 * value for value in repetition["searches"][name]["validation"]] for repetition in found]


def robustness(found: Found) -> Section:
    """Attacks within an l-infinity ball."""
    changes, lines, cautions, seen = {}, [], [], []
    for place, first in enumerate(found[0]["radii"]):
        at = [repetition["radii"][place] for repetition in found]
        relu, tuned = ([1 - one["test"][name]["both"] for one in at] for name in ("relu", "search"))
        change = changes[f"attacks up to {first['radius']:g}"] = fewer(tuned, relu)
        lines += _attacked(at, change)
        cautions += _masked(at)
        seen.append({**first, "validation": [one["validation"] for one in at]})
    columns = ("network", False), ("clean (%)", True), ("attacked (%)", True), ("carried over (%)", True)
    columns += ("both (%)", True), ("fewer errors under both", True), ("beta", True)
    tried = len(found[0]["radii"][0]["betas"])
    note = f"Accuracy. {_note(found)} The validation split chose between {tried} values of beta at each radius, by the "
    note += "accuracy under both attacks; the test split saw ReLU and the chosen one alone."
    return Section(
        changes=changes,
        cautions=cautions,
        grids=[Grid("Attacks on the network's own gradient, and carried over", _columns(columns), tuple(lines), note)],
        plots=[plots.attacked(seen)],
        method=[f"Attacks: a network trained on clean digits, pixels from 0 to 1. {_sizes(found)} {ATTACKS}"],
        limits=["Stronger attacks than these two can only lower the accuracies under attack."],
    )


def _attacked(at: Found, change: Interval) -> list[tuple[Cell, ...]]:
    """Rows of one radius: accuracies of the network with ReLUs and of the chosen one."""
    lines = []
    for name, label in (("relu", "ReLU"), ("search", "beta searched")):
        kinds = ("clean", "white", "carried", "both")
        cells = [share([one["test"][name][kind] for one in at]) for kind in kinds]
        picked = "1" if name == "relu" else chosen([one["chosen"] for one in at])
        against = gain(change) if name == "search" else nothing()
        lines.append((Cell(f"{label}, up to {at[0]['radius']:g}"), *cells, against, Cell(picked, "quiet")))
    return lines


def _masked(at: Found) -> list[str]:
    """Whether the carried attack does more harm than the network's own, by more than a point."""
    tested = [one["test"]["search"] for one in at]
    gap = interval([100 * (accuracy["white"] - accuracy["carried"]) for accuracy in tested]).mean
    if gap <= 1:
        return []
    return [
        f"At changes up to {at[0]['radius']:g} the attack carried over from the ReLU network did more harm to the "
        f"tuned one than the attack on itself (by {gap:.1f} points): its gradients are masked."
    ]


def boundary(found: Found) -> Section:
    """Shape of a boundary in the plane."""
    betas = found[0]["betas"]
    lines = []
    for place, beta in enumerate(betas):
        turns = [repetition["turning"][place] / 6.283185307179586 for repetition in found]
        lengths = [repetition["length"][place] for repetition in found]
        errors = [share([repetition[key][place] for repetition in found]) for key in ("training", "test")]
        lines.append((Cell(f"{beta:g}"), number(turns, 1), number(lengths, 1), *errors))
    columns = ("beta", True), ("turning (turns)", True), ("length", True), ("training error (%)", True)
    columns += (("test error (%)", True),)
    note = f"{_note(found)} Nothing is chosen here: all values of beta are shown, their test errors too."
    grid = Grid(
        "Boundary between two spirals, 16 % of the training labels wrong", _columns(columns), tuple(lines), note
    )
    first, last = (
        interval([repetition["turning"][place] / 6.283185307179586 for repetition in found]) for place in (0, -1)
    )
    falls = sum(all(a >= b for a, b in zip(r["turning"], r["turning"][1:], strict=False)) for r in found)
    figures = [plots.shapes(betas, found)] if len(betas) > 1 else []
    if found[0].get("lines"):
        figures.insert(0, plots.boundaries(found[0]["lines"], found[0]["points"]))
    return Section(
        findings=[
            f"The boundary turns {first.mean:.1f} times in all with ReLU and {last.mean:.1f} times at beta = "
            f"{betas[-1]:g}; it turned less at every smaller beta in {falls} of {len(found)} repetitions. A "
            "boundary that turns less is not a better one: see the test errors."
        ],
        grids=[grid],
        plots=figures,
        method=[
            "Boundary: a network of three hidden layers of 20 on two spirals; the line of equal scores on a grid "
            "of 161 points a side; its turning is the sum of the angles between neighbouring pieces."
        ],
    )


def bridge(found: Found) -> Section:
    """A tuned network as the reference."""
    betas, plain = found[0]["betas"], [repetition["plain"] for repetition in found]
    steered = _by_beta(found, "steered")
    gains = [fewer(errors, steered[0]) for errors in steered]
    each = [(f"{beta:g} ({signed(one)} points)", one.verdict) for beta, one in zip(betas, gains, strict=True)]
    told = {verdict: ", ".join(word for word, mine in each if mine == verdict) for verdict in ("better", "worse")}
    words = "; ".join(f"{verdict} at beta {where}" for verdict, where in told.items() if where)
    words = words or "no value of beta made a decided difference"
    findings = [f"As a reference of DRRho, the tuned network against itself with ReLU: {words}."]
    lowest = min(interval(ratios).mean for ratios in _by_beta(found, "ratio"))
    if lowest > 1 and fewer(steered[0], plain).verdict == "better":
        findings.append(
            "The variance ratio is above 1 and the reference helps all the same: its loss is large where a label is "
            "wrong, which raises the variance of the difference and also takes the weight off such samples."
        )
    return Section(
        findings=findings,
        grids=[_references(found, gains)],
        plots=[plots.references(betas, found)] if len(betas) > 1 else [],
        method=[
            f"Reference: a network of one hidden layer trained on {found[0]['sizes'][1]} clean digits, its ReLUs "
            "replaced; the target, of the same kind, learns from 400 digits with 40 % wrong labels by KL-DRRho "
            "(temperature 0.5, the reference's loss subtracted whole) or plainly, by the loop that steer run uses."
        ],
    )


def _references(found: Found, gains: Sequence[Interval]) -> Grid:
    """One row for every beta of the reference, and one without a reference."""
    plain = [repetition["plain"] for repetition in found]
    lines = [(Cell("no reference"), nothing(), nothing(), share(plain), nothing(), nothing())]
    rows = zip(
        found[0]["betas"], gains, *(_by_beta(found, key) for key in ("reference", "ratio", "steered")), strict=True
    )
    for beta, change, own, ratio, steered in rows:
        against = nothing() if beta == 1 else gain(change)
        cells = share(own), number(ratio, 2), share(steered), gain(fewer(steered, plain)), against
        lines.append((Cell(f"beta = {beta:g}" + (" (ReLU)" if beta == 1 else "")), *cells))
    columns = ("reference", False), ("its own test error (%)", True), ("variance ratio", True)
    columns += ("target's test error (%)", True), ("fewer errors than plain", True), ("fewer than beta = 1", True)
    note = f"{_note(found)} Variance ratio: Var(l - l_ref) / Var(l) on held-out samples with noisy labels, l of the "
    note += "target trained plainly. Nothing is chosen: every beta is shown."
    return Grid("A tuned network as the reference of DRRho", _columns(columns), tuple(lines), note)


def _by_beta(found: Found, key: str) -> list[list[float]]:
    """Values of every beta, each by repetition."""
    return [list(values) for values in zip(*(repetition[key] for repetition in found), strict=True)]


def _columns(columns: Sequence[tuple[str, bool]]) -> tuple[Column, ...]:
    return tuple(Column(*column) for column in columns)


def _note(found: Found) -> str:
    if len(found) == 1:
        return "One repetition, hence no intervals."
    return f"Means of {len(found)} repetitions with 95 % t intervals; differences are in points and paired."


def _sizes(found: Found) -> str:
    training, validation, test = found[0]["sizes"]
    return (
        f"{training} samples to learn from, {validation} to choose on, {test} to test on, drawn anew each repetition."
    )


def _missed(found: Found) -> list[str]:
    """What could not be replaced, once."""
    return [f"not replaced, {site['name'] or 'the model'}: {site['what']}" for site in found[0].get("missed", [])][:8]


def problem(found: Found, metrics: Mapping[str, Metric], name: str, refit: int) -> Section:
    """The search on a task or on the models of a run."""
    first, head = next(iter(metrics.items()))
    factor, unit = (100.0, " points") if head.percent else (1.0, "")
    values = {row: [factor * one["rows"][row][first] for one in found] for row in found[0]["rows"]}
    change = paired_difference(values["search"], values["refitted" if refit else "trained"], head.better)
    size = f"{spread(change, 2)}{unit}"
    words = {
        "better": f"made {head.label} better by {size}",
        "worse": f"made {head.label} worse ({size}, better above 0)",
        "undecided": f"made no decided difference in {head.label} ({size}, better above 0)",
    }
    curve = ("held-out samples", found[0]["search"]["betas"], [one["search"]["validation"] for one in found])
    places = [site["name"] for site in found[0]["replaced"]]
    trained = f" For every beta, 1 included, the last linear layer is trained {refit} steps more." if refit else ""
    return Section(
        verdict=f"Choosing beta by the held-out loss {words[change.verdict]}.",
        findings=[f"ReLUs replaced: {len(places)} ({', '.join(places[:8])}{', ...' if len(places) > 8 else ''})."],
        cautions=_missed(found),
        grids=[_models(found, metrics, name)],
        plots=[plots.searches("search", "What the search saw", [curve], "loss", "Mean loss on held-out samples")],
        method=[
            "Beta is chosen by the mean loss on the task's held-out samples; then the task's own metrics are taken, "
            f"once for each row.{trained}"
        ],
    )


def _models(found: Found, metrics: Mapping[str, Metric], name: str) -> Grid:
    """The model as it was, with its last layer trained anew if that was asked for, and as it was chosen."""
    again = "last layer trained anew"
    labels = {"trained": "as it was trained", "refitted": again, "search": "beta searched"}
    if "refitted" in found[0]["rows"]:
        labels["search"] = f"{again}, beta searched"
    picked, tried = chosen([one["search"]["chosen"] for one in found]), len(found[0]["search"]["betas"])
    lines = []
    for row in found[0]["rows"]:
        cells = [_metric([one["rows"][row][key] for one in found], metric) for key, metric in metrics.items()]
        told = (str(tried), picked) if row == "search" else ("1", "1")
        lines.append((Cell(labels[row]), *cells, Cell(told[0]), Cell(told[1], "quiet")))
    heads = [Column(metric.label + (" (%)" if metric.percent else "")) for metric in metrics.values()]
    columns = (Column("model", False), *heads, Column("candidates"), Column("beta"))
    return Grid(f"The search on {name}", columns, tuple(lines), f"{_note(found)} {COUNTED}")


def _metric(values: Sequence[float], metric: Metric) -> Cell:
    return share(values) if metric.percent else number(values, 3)
