"""The table of the study: what every arm gains over plain training, and where one loses."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from steering.reports.grid import Cell, Grid, number
from steering.reports.report import Report
from steering.runs.statistics import Interval, paired_difference
from steering.runs.table import Format
from steering.theory_checks.never_hurts.plan import AUTO, FIXED, FOLDS, PLAIN, Plan
from steering.theory_checks.never_hurts.units import Outcome

HINDSIGHT = "best kl in hindsight"
GOAL = -0.003  # the interval of every gain should reach above it
WORTH = 0.01  # gains in hindsight above this are worth keeping
STYLE = Format(100.0, 2)
Outcomes = Mapping[tuple[str, int], Outcome]  # by cell and seed


@dataclass(frozen=True)
class Analysis:
    """What the outcomes say; gains are paired over seeds, positive where an arm errs less than plain training."""

    plan: Plan
    outcomes: Outcomes

    def errors(self, cell: str, arm: str) -> list[float]:
        return [self.outcomes[cell, seed].errors[arm] for seed in self.plan.seed_numbers()]

    def gain(self, cell: str, arm: str) -> Interval:
        """Of an arm, or of the best fixed temperature in hindsight, over plain training."""
        arm = self.best_kl(cell) if arm == HINDSIGHT else arm
        return paired_difference(self.errors(cell, arm), self.errors(cell, PLAIN), "low")

    def best_kl(self, cell: str) -> str:
        """The KL arm of the least mean error, or plain training, which is a temperature without end."""
        arms = [PLAIN, *(name for name in self.plan.recipe.arms if name.startswith("kl_"))]
        return min(arms, key=lambda arm: fmean(self.errors(cell, arm)))

    @cached_property
    def arms(self) -> list[str]:
        return [HINDSIGHT, *(arm for arm in (FIXED, AUTO, FOLDS) if arm in self.plan.recipe.arms)]

    def losing(self, arm: str) -> list[str]:
        """Cells in which an arm is worse than plain training, decidedly."""
        return [cell for cell in self.plan.cells if loses(self.gain(cell, arm))]

    def missing(self, arm: str) -> list[str]:
        """Cells whose whole interval lies below the goal."""
        return [cell for cell in self.plan.cells if misses(self.gain(cell, arm))]

    def mean_gain(self, arm: str) -> float:
        return fmean(self.gain(cell, arm).mean for cell in self.plan.cells)

    def kept(self, arm: str) -> dict[str, float]:
        """Gain as a share of the best arm's in hindsight, of cells where that one is worth keeping."""
        shares = {}
        for cell in self.plan.cells:
            best = max(self.gain(cell, one).mean for one in self.arms)
            if best > WORTH:
                shares[cell] = self.gain(cell, arm).mean / best
        return shares


def loses(gain: Interval) -> bool:
    """Whether an arm is decidedly worse; a gain without spread over seeds is what it is."""
    return (gain.mean if gain.high is None else gain.high) < 0


def misses(gain: Interval) -> bool:
    return (gain.mean if gain.high is None else gain.high) < GOAL


def report(analysis: Analysis, command: str) -> Report:
    """What the study says, with every losing cell marked."""
    plan = analysis.plan
    seeds = f"seeds {plan.first_seed} to {plan.first_seed + plan.seeds - 1}"
    return Report(
        title="Does steering ever hurt?",
        question="What do auto and a fixed temperature gain over plain training, with good references and bad ones?",
        verdict=_sentence(analysis, FOLDS),
        command=command,
        findings=[_sentence(analysis, arm) for arm in (AUTO, FIXED, HINDSIGHT)],
        cautions=[f"{plan.seeds} seeds are few: 20 or more decide"] if plan.seeds < 20 else [],
        grids=[_table(analysis), _weights(analysis)],
        method=[
            f"All arms of a cell and seed have the same draw, initial weights and order of data ({seeds}), the same "
            "training loop and the weight decay that was best for plain training on other seeds. Cells and terms "
            "are explained in docs/never_hurts.md of model-steering."
        ],
        numbers={
            "gains": {cell: {arm: vars(analysis.gain(cell, arm)) for arm in analysis.arms} for cell in plan.cells},
            "losing": {arm: analysis.losing(arm) for arm in analysis.arms},
            "missing": {arm: analysis.missing(arm) for arm in analysis.arms},
            "kept": {arm: analysis.kept(arm) for arm in analysis.arms},
            "mean_gain": {arm: analysis.mean_gain(arm) for arm in analysis.arms},
        },
    )


def seeds_table(outcomes: Outcomes) -> str:
    """Every training in a line, for spreadsheets and other software."""
    lines = ["cell,seed,arm,error"]
    for (cell, seed), outcome in outcomes.items():
        lines += [f"{cell},{seed},{arm},{error!r}" for arm, error in outcome.errors.items()]
    return "\n".join(lines) + "\n"


def _sentence(analysis: Analysis, arm: str) -> str:
    losing, missing, kept = analysis.losing(arm), analysis.missing(arm), analysis.kept(arm)
    mean = number(100 * analysis.mean_gain(arm), 2, sign=True)
    count = len(analysis.plan.cells)
    words = f"{arm} gains {mean} points on average over {count} cells and loses decidedly in {len(losing)} of them"
    words += f" ({', '.join(losing)})" if losing else ""
    words += f"; below the goal of {number(100 * GOAL, 1)} points: {', '.join(missing) or 'none'}"
    if kept and arm in (AUTO, FOLDS):
        least = min(kept, key=kept.__getitem__)
        words += f"; it keeps {100 * fmean(kept.values()):.0f} % of the best gain of the table where that is above "
        words += f"1 point, least in {least} ({100 * kept[least]:.0f} %)"
    return f"{words}."


def _table(analysis: Analysis) -> Grid:
    rows = []
    for cell in analysis.plan.cells:
        gains = [analysis.gain(cell, arm) for arm in analysis.arms]
        plain = number(100 * fmean(analysis.errors(cell, PLAIN)), 1)
        best = analysis.best_kl(cell).removeprefix("kl_")
        rows.append([cell, plain, *map(_marked, gains), best])
    means = [number(100 * analysis.mean_gain(arm), 2, sign=True) for arm in analysis.arms]
    rows.append(["mean", "", *means, ""])
    heads = [f"{PLAIN}, error %", *analysis.arms, "its temperature"]
    note = (
        "Points of test error gained over plain training, balanced over classes in F and G, with the half width of the "
        "paired 95 % t interval over seeds. LOSES: the whole interval is below 0; MISSES: below -0.3."
    )
    return Grid.of(f"Gains over plain training, {analysis.plan.seeds} seeds", ["cell"], heads, rows, note)


def _marked(gain: Interval) -> Cell:
    mark = " MISSES" if misses(gain) else " LOSES" if loses(gain) else ""
    tone = "worse" if mark else "better" if gain.low is not None and gain.low > 0 else ""
    return Cell(STYLE.interval(gain, sign=True) + mark, tone)


def _weights(analysis: Analysis) -> Grid:
    """What the first seed's estimates say."""
    first = analysis.plan.first_seed
    arms = [arm for arm in (AUTO, FOLDS) if arm in analysis.arms]
    rows = [[cell, *(analysis.outcomes[cell, first].sentences[arm] for arm in arms)] for cell in analysis.plan.cells]
    return Grid.of(f"What was estimated, seed {first}", ["cell", *arms], [], rows)
