"""The figures of the variance report."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from steering.reports.figures import BASE, GREY, PALETTE, STYLE, Plot, figure, legend, png
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.variance.measure import Measured
from steering.theory_checks.variance.paired import Paired
from steering.theory_checks.variance.trajectory import Moment, initial
from steering.theory_checks.variance.trajectory import ratios as ratios_of
from steering.theory_checks.variance.words import VISIBLE, short, span

POINTS = 3000  # of a cloud that are drawn
WIDE = 1e3  # an axis of more than this has ticks at powers of ten alone
ASIDE = 0.2  # of a row, so that marks do not hide each other
DOT: dict[str, Any] = {"ms": 4, "alpha": 0.35, "mew": 0}
MARKS = "osD^vPXh"
HOLLOW: dict[str, Any] = {"ms": 5, "mfc": "none", "mew": 1.3}


def ratios(found: Mapping[str, Measured]) -> Plot:
    """R of every measurement with its interval, seeds as dots."""
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=1.2 + 0.4 * len(found))
        for row, measured in enumerate(found.values()):
            if measured.repetitions > 1:
                axes.plot(measured.ratios, [row - ASIDE] * measured.repetitions, "o", color=PALETTE[0], **DOT)
            _bar(axes, row, measured.ratio, PALETTE[0])
            axes.plot([measured.winsorised.value], [row + ASIDE], "D", mec=PALETTE[1], **HOLLOW)
            if measured.tempered is not None:
                axes.plot([measured.tempered], [row + ASIDE], "s", mec=PALETTE[2], **HOLLOW)
        _levels(axes, list(found))
        handles = [Line2D([], [], color=PALETTE[0], marker="o", label="R, 95 % interval")]
        if any(measured.repetitions > 1 for measured in found.values()):
            handles.append(_mark("o", PALETTE[0], "a seed", filled=True))
        handles.append(_mark("D", PALETTE[1], "winsorised"))
        if any(measured.tempered is not None for measured in found.values()):
            handles.append(_mark("s", PALETTE[2], "at the best temperature"))
        legend(made, handles)
        image = png(made)
    listed = "; ".join(f"{name}: {span(measured.ratio)}" for name, measured in found.items())
    caption = (
        f"R = Var(l - l_ref) / Var(l) with its 95 % bootstrap interval. At 1 (solid) the reference takes nothing away, "
        f"above {VISIBLE:g} (dotted) no visible effect is expected. {listed}."
    )
    return Plot("ratios", "What the reference takes of the variance", caption, image)


def candidates(found: Mapping[str, Estimate]) -> Plot:
    """R of every candidate before training."""
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=1.1 + 0.4 * len(found))
        for row, ratio in enumerate(found.values()):
            _bar(axes, row, ratio, PALETTE[0])
        _levels(axes, list(found))
        image = png(made)
    caption = "R of every candidate against its stand-in for the best model, with the 95 % bootstrap interval."
    return Plot("candidates", "Candidate references before training", caption, image)


def cloud(name: str, pair: Paired) -> Plot:
    """l against l_ref of one repetition, with the regression and the line of no difference."""
    loss, reference, _ = pair.flat()
    kept = np.random.default_rng(0).permutation(len(loss))[:POINTS]
    slope = np.cov(loss, reference)[0, 1] / reference.var(ddof=1) if np.ptp(reference) else 0.0
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=4.2)
        axes.plot(reference[kept], loss[kept], "o", ms=3, alpha=0.3, color=PALETTE[0], mew=0, rasterized=True)
        ends = np.array([reference[kept].min(), reference[kept].max()])
        axes.plot(ends, ends, color=BASE, lw=1.2, ls=(0, (4, 2)))
        axes.plot(ends, loss.mean() + slope * (ends - reference.mean()), color=PALETTE[1])
        axes.set_ylim(*_room(loss[kept]))
        axes.set_xlabel("loss of the reference")
        axes.set_ylabel("loss of the target")
        legend(
            made,
            [
                _mark("o", PALETTE[0], "a held-out sample", filled=True),
                Line2D([], [], color=PALETTE[1], label="regression, slope beta*"),
                Line2D([], [], color=BASE, lw=1.2, ls=(0, (4, 2)), label="equal losses"),
            ],
        )
        image = png(made)
    some = f" {len(kept):,} of {len(loss):,} losses, drawn at random." if len(kept) < len(loss) else ""
    caption = (
        f"{name}, first repetition. Subtracting the reference's loss removes what lies along the dashed line; what "
        f"lies along the regression, of slope beta* = {slope:.2f}, is what a scale could remove.{some}"
    )
    return Plot("losses", "Loss of the target against loss of the reference", caption, image)


def tails(name: str, pair: Paired) -> Plot:
    """Which share of the samples carries which share of the variance."""
    loss, reference, _ = pair.flat()
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=3.4)
        handles = []
        for values, colour, label in ((loss, BASE, "Var(l)"), (loss - reference, PALETTE[0], "Var(l - l_ref)")):
            square = np.sort((values - values.mean()) ** 2)[::-1]
            places = np.unique(np.geomspace(1, len(square), 400).astype(int))
            handles += axes.plot(
                places / len(square), np.cumsum(square)[places - 1] / square.sum(), color=colour, label=label
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("share of the samples, the most deviant first")
        axes.set_ylabel("share of the variance")
        legend(made, handles)
        image = png(made)
    caption = (
        f"{name}, first repetition. The further to the upper left, the fewer samples a variance rests on; where one "
        f"carries a tenth of it, its interval is not to be relied on."
    )
    return Plot("tails", "What the variances rest on", caption, image)


def along(name: str, seen: Sequence[Sequence[Moment]]) -> Plot:
    """R against the step: the median of the seeds and their range, the beginning of the training dashed."""
    steps, found, early = [one.step for one in seen[0]], ratios_of(seen), initial(seen)
    median = np.median(found, 0)
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=3.4)
        if len(found) > 1:
            axes.fill_between(steps, found.min(0), found.max(0), color=PALETTE[0], alpha=0.18, lw=0)
        axes.plot(steps, median, "--o", color=GREY, ms=5)
        axes.plot(steps, np.where(early, np.nan, median), "-o", color=PALETTE[0], ms=5)
        axes.axhline(1, color=BASE, lw=1.2)
        axes.axhline(VISIBLE, color=GREY, lw=1, ls=(0, (1.5, 1)))
        axes.set_xscale("log")
        axes.set_xticks(steps, [f"{step:,}" for step in steps])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, VISIBLE / 1.3), max(high, 1.3))
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high / low > WIDE else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("gradient steps")
        axes.set_ylabel("R = Var(l - l_ref) / Var(l)")
        label = "R, median of seeds" if len(found) > 1 else "R"
        handles: list[Artist] = [Line2D([], [], color=PALETTE[0], marker="o", ms=5, label=label)]
        if early.any():
            handles.append(Line2D([], [], color=GREY, ls="--", marker="o", ms=5, label="sd(l) < sd(l_ref) / 2"))
        if len(found) > 1:
            handles.append(Patch(color=PALETTE[0], alpha=0.18, lw=0, label="range of seeds"))
        legend(made, handles)
        image = png(made)
    listed = "; ".join(f"step {step:,}: {short(ratio)}" for step, ratio in zip(steps, median, strict=True))
    caption = (
        f"{name}, on the same held-out samples at every step. Dashed: while sd(l) < sd(l_ref) / 2, R is above 1 "
        f"whatever the reference knows. At 1 (solid) the reference takes nothing away, above {VISIBLE:g} (dotted) no "
        f"visible effect is expected. {listed}."
    )
    return Plot("along", "R along the training", caption, image)


def _bar(axes, row: int, ratio: Estimate, colour) -> None:
    low, high = (x if np.isfinite(x) and x > 0 else ratio.value for x in (ratio.low, ratio.high))
    axes.plot([low, high], [row, row], color=colour, lw=2.2)
    axes.plot([ratio.value], [row], "o", color=colour, ms=7, mec="white", mew=0.8)


def _levels(axes, names: list[str]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color=BASE, lw=1.2)
    axes.axvline(VISIBLE, color=GREY, lw=1, ls=(0, (1.5, 1)))
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.3), max(high, 1.6))
    wide = axes.get_xlim()[1] / axes.get_xlim()[0] > WIDE
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("R = Var(l - l_ref) / Var(l)")


def _mark(marker: str, colour, label: str, *, filled: bool = False) -> Line2D:
    face = colour if filled else "none"
    return Line2D([], [], ls="", marker=marker, mfc=face, mec=colour, alpha=0.5 if filled else 1, label=label)


def _room(values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def prediction(
    place: str, title: str, predicted: Mapping[str, float], errors: Mapping[str, Estimate], plain: float
) -> Plot:
    """Error after training with each candidate against what was predicted of it."""
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=4.4)
        axes.axhline(100 * plain, color=BASE, lw=1.2, ls=(0, (4, 2)))
        handles = [Line2D([], [], color=BASE, lw=1.2, ls=(0, (4, 2)), label="no reference")]
        for number, (name, error) in enumerate(errors.items()):
            colour, at = PALETTE[number % len(PALETTE)], predicted[name]
            axes.plot([at, at], [100 * error.low, 100 * error.high], color=colour, lw=1.6)
            mark = {
                "marker": MARKS[number % len(MARKS)],
                "color": colour,
                "ms": 8,
                "mec": "white",
                "mew": 0.8,
                "ls": "",
            }
            handles += axes.plot([at], [100 * error.value], label=name, alpha=0.85, **mark)
        axes.set_xscale("log")
        wide = max(predicted.values()) / min(predicted.values()) > WIDE / 10
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"predicted before training: {title}")
        axes.set_ylabel("error after training, %")
        legend(made, handles)
        image = png(made)
    caption = (
        f"A point is a reference: across, {title}, its mean over seeds; up, the error of the target that was "
        f"steered by it, with its 95 % interval over seeds. Were the prediction right, the points would rise."
    )
    return Plot(place, f"Error after training against {title}", caption, image)
