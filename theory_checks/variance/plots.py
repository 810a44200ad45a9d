"""The plots of the variance reports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from steering.reports.figures import BASE, GREY, PALETTE, appearance, figure, key, logarithmic, name_rows, plot, styled
from steering.reports.report import Plot
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.variance.measure import Measured
from steering.theory_checks.variance.paired import Paired
from steering.theory_checks.variance.trajectory import Moment, initial
from steering.theory_checks.variance.trajectory import ratios as ratios_of
from steering.theory_checks.variance.verdicts import VISIBLE, short, span

POINTS = 3000  # of a cloud that are drawn
ASIDE = 0.28  # of a row, so that marks do not hide each other
DOT: dict[str, Any] = {"marker": "o", "ls": "", "mew": 0}
HOLLOW: dict[str, Any] = {"ls": "", "ms": 5, "mfc": "none", "mew": 1.3}
DASHED: dict[str, Any] = {"color": BASE, "lw": 1.2, "ls": (0, (4, 2))}
MARKS = "osD^vPXh"
LEVELS = f"At 1 (solid) the reference takes nothing away, above {VISIBLE:g} (dotted) no visible effect is expected."
RATIO = "R = Var(l - l_ref) / Var(l)"


@styled
def ratios(by_name: Mapping[str, Measured]) -> Plot:
    """R of every measurement with its interval, seeds as dots."""
    made, ((axes,),) = figure(height=1.2 + 0.4 * len(by_name))
    several = any(measured.repetitions > 1 for measured in by_name.values())
    tempered = any(measured.tempered is not None for measured in by_name.values())
    for row, measured in enumerate(by_name.values()):
        if measured.repetitions > 1:
            axes.plot(measured.ratios, [row - ASIDE] * measured.repetitions, color=PALETTE[0], ms=4, alpha=0.35, **DOT)
        _bar(axes, row, measured.ratio)
        axes.plot([measured.winsorised.value], [row + ASIDE], "D", mec=PALETTE[1], **HOLLOW)
        if measured.tempered is not None:
            axes.plot([measured.tempered], [row + ASIDE], "s", mec=PALETTE[2], **HOLLOW)
    _rows(axes, list(by_name))
    handles = [key("R, 95 % interval", PALETTE[0], marker="o")]
    handles += [key("a seed", PALETTE[0], alpha=0.5, **DOT)] if several else []
    handles += [key("winsorised", PALETTE[1], marker="D", mec=PALETTE[1], **HOLLOW)]
    handles += [key("at the best temperature", PALETTE[2], marker="s", mec=PALETTE[2], **HOLLOW)] if tempered else []
    listed = "; ".join(f"{name}: {span(measured.ratio)}" for name, measured in by_name.items())
    caption = f"{RATIO} with its 95 % bootstrap interval. {LEVELS} {listed}."
    return plot(made, handles, "ratios", "What the reference takes of the variance", caption)


@styled
def candidates(by_name: Mapping[str, Estimate]) -> Plot:
    """R of every candidate before training."""
    made, ((axes,),) = figure(height=1.1 + 0.4 * len(by_name))
    for row, ratio in enumerate(by_name.values()):
        _bar(axes, row, ratio)
    _rows(axes, list(by_name))
    caption = "R of every candidate against its stand-in for the best model, with the 95 % bootstrap interval."
    return plot(made, [], "candidates", "Candidate references before training", caption)


@styled
def cloud(name: str, pair: Paired) -> Plot:
    """l against l_ref of one repetition, with the regression and the line of no difference."""
    loss, reference, _ = pair.flat()
    drawn = np.random.default_rng(0).permutation(len(loss))[:POINTS]
    slope = np.cov(loss, reference)[0, 1] / reference.var(ddof=1) if np.ptp(reference) else 0.0
    made, ((axes,),) = figure(height=4.2)
    axes.plot(reference[drawn], loss[drawn], color=PALETTE[0], ms=3, alpha=0.3, rasterized=True, **DOT)
    ends = np.array([reference[drawn].min(), reference[drawn].max()])
    equal = axes.plot(ends, ends, label="equal losses", **DASHED)
    fitted = loss.mean() + slope * (ends - reference.mean())
    regression = axes.plot(ends, fitted, color=PALETTE[1], label="regression, slope beta*")
    room = 0.05 * np.ptp(loss[drawn])
    axes.set_ylim(loss[drawn].min() - room, loss[drawn].max() + room)
    axes.set(xlabel="loss of the reference", ylabel="loss of the target")
    handles = [key("a held-out sample", PALETTE[0], alpha=0.5, **DOT), *regression, *equal]
    subset = f" {len(drawn):,} of {len(loss):,} losses, drawn at random." if len(drawn) < len(loss) else ""
    caption = (
        f"{name}, first repetition. Subtracting the reference's loss removes what lies along the dashed line, a scale "
        f"what lies along the regression, of slope beta* = {slope:.2f}.{subset}"
    )
    return plot(made, handles, "losses", "Loss of the target against loss of the reference", caption)


@styled
def tails(name: str, pair: Paired) -> Plot:
    """Which share of the samples carries which share of the variance."""
    loss, reference, _ = pair.flat()
    made, ((axes,),) = figure(height=3.4)
    handles = []
    for values, colour, label in ((loss, BASE, "Var(l)"), (loss - reference, PALETTE[0], "Var(l - l_ref)")):
        square = np.sort((values - values.mean()) ** 2)[::-1]
        counts = np.unique(np.geomspace(1, len(square), 400).astype(int))
        shares = np.cumsum(square)[counts - 1] / square.sum()
        handles += axes.plot(counts / len(square), shares, color=colour, label=label)
    logarithmic(axes, "x", at=[10.0**power for power in range(-8, 1)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set(ylim=(0, 1.02), xlabel="share of the samples, the most deviant first", ylabel="share of the variance")
    caption = (
        f"{name}, first repetition. The further to the upper left, the fewer samples a variance rests on; where one "
        f"carries a tenth of it, its interval is not to be relied on."
    )
    return plot(made, handles, "tails", "What the variances rest on", caption)


@styled
def along(name: str, seeds: Sequence[Sequence[Moment]]) -> Plot:
    """R against the step: the median of the seeds and their range, the beginning of the training dashed."""
    steps, values, early = [one.step for one in seeds[0]], ratios_of(seeds), initial(seeds)
    median, several = np.median(values, 0), len(values) > 1
    made, ((axes,),) = figure(height=3.4)
    band = axes.fill_between(steps, values.min(0), values.max(0), color=PALETTE[0], alpha=0.18, lw=0)
    axes.plot(steps, median, "--o", color=GREY, ms=5)
    axes.plot(steps, np.where(early, np.nan, median), "-o", color=PALETTE[0], ms=5)
    _levels(axes.axhline)
    axes.set(xscale="log", yscale="log", xlabel="gradient steps", ylabel=RATIO)
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, VISIBLE / 1.3), max(high, 1.3))
    logarithmic(axes, "y")
    handles: list[Artist] = [key("R, median of seeds" if several else "R", PALETTE[0], marker="o", ms=5)]
    handles += [key("sd(l) < sd(l_ref) / 2", ls="--", marker="o", ms=5)] if early.any() else []
    band.set_label("range of seeds")
    handles += [band] if several else []
    listed = "; ".join(f"step {step:,}: {short(ratio)}" for step, ratio in zip(steps, median, strict=True))
    caption = f"{name}, on the same samples at every step; dashed while sd(l) < sd(l_ref) / 2. {LEVELS} {listed}."
    return plot(made, handles, "along", "R along the training", caption)


@styled
def prediction(
    name: str, title: str, predicted: Mapping[str, float], errors: Mapping[str, Estimate], plain: float
) -> Plot:
    """Error after training with each candidate against what was predicted of it."""
    made, ((axes,),) = figure(height=4.4)
    axes.axhline(100 * plain, **DASHED)
    handles = [key("no reference", **DASHED)]
    for index, (candidate, error) in enumerate(errors.items()):
        colour, x = appearance(index)["color"], predicted[candidate]
        axes.plot([x, x], [100 * error.low, 100 * error.high], color=colour, lw=1.6)
        mark = {"marker": MARKS[index % len(MARKS)], "color": colour, "mec": "white", "mew": 0.8, "ms": 8, "ls": ""}
        handles += axes.plot([x], [100 * error.value], label=candidate, alpha=0.85, **mark)
    axes.set(xscale="log", xlabel=f"predicted before training: {title}", ylabel="error after training, %")
    logarithmic(axes, "x")
    caption = f"Error of the target that a reference steered, with its 95 % interval over seeds, against {title}."
    return plot(made, handles, name, f"Error after training against {title}", caption)


def _bar(axes: Axes, row: int, ratio: Estimate) -> None:
    low, high = (x if np.isfinite(x) and x > 0 else ratio.value for x in (ratio.low, ratio.high))
    axes.plot([low, high], [row, row], color=PALETTE[0], lw=2.2)
    axes.plot([ratio.value], [row], "o", color=PALETTE[0], ms=7, mec="white", mew=0.8)


def _levels(line: Callable[..., Any]) -> None:
    line(1, color=BASE, lw=1.2)
    line(VISIBLE, color=GREY, lw=1, ls=(0, (1.5, 1)))


def _rows(axes: Axes, names: list[str]) -> None:
    """A row a name, R across, with the levels that verdicts hang on."""
    axes.set_xscale("log")
    _levels(axes.axvline)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.3), max(high, 1.6))
    logarithmic(axes, "x")
    name_rows(axes, names)
    axes.set_xlabel(RATIO)
