"""CLIP models on held-out pairs, each seeing them its own way, and candidate references judged before any training."""

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from steering.clip.data.shards import Shards
from steering.clip.emoji_data import emoji_shard
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import PairSet
from steering.clip.models import Towers
from steering.clip.reference.load import load_reference
from steering.clip.reference.model import Reference
from steering.clip.task import EMOJI_DATA
from steering.errors import UserError
from steering.reports.grid import Cell, Column, Grid
from steering.reports.report import Report
from steering.runs.processes import device_named
from steering.theory_checks.variance import plots
from steering.theory_checks.variance.bench import Bench
from steering.theory_checks.variance.measure import Ranked, rank
from steering.theory_checks.variance.paired import (
    PER_ANCHOR,
    PER_PAIR,
    SIDES,
    WITHIN,
    Features,
    Paired,
    anchor_losses,
    views,
)
from steering.theory_checks.variance.verdicts import short, span
from steering.training.seeds import generator, untouched

FEWEST = 10  # pairs below which there is nothing to measure
SEARCHED = (1e-3, 10.0)  # temperatures among which the best one of a model is searched
TEMPERATURES = {True: 0.07, False: 0.01}  # of the bundled pairs, which are few and small, and of others (the paper's)
DECIDE = [f"{side} side, {PER_PAIR}" for side in SIDES]
LONGEST = 30  # letters of a name in a table
KNOWS = 0.1  # nats below guessing, without which a model knows nothing of the pairs
QUESTION = "Which of these references takes most of the variance of the best model's loss, judged before any training?"
SURE = 0.95  # share of the draws in which the first has to be first


@dataclass(frozen=True)
class ClipBench(Bench):
    """Held-out pairs of a CLIP task, with as many wrong captions as its training pairs have."""

    most: int  # pairs to use; similarities of all with all are kept

    def score(self, model: nn.Module) -> Features:
        """A model's features of the held-out pairs; a share of the captions is passed on in a circle."""
        answers = features(model, self._pairs)
        number = len(answers.right)
        noise = self.task.noise if self.task.data == EMOJI_DATA else 0.0  # other held-out pairs are as they come
        order = torch.arange(number)
        wrong = torch.randperm(number, generator=generator(0, "wrong captions"))[: round(noise * number)]
        order[wrong] = wrong.roll(1)
        return answers._replace(right=answers.right[order])

    def leak(self) -> tuple[np.ndarray, np.ndarray]:
        """The reference's anchor losses of fresh and of training pairs, against as many negatives each; ``[n]``."""
        trained = features(self.reference, self.task.training_pairs(len(self.answers.left)))
        number = min(len(self.answers.left), len(trained.left))
        parts = (Features(both.left[:number], both.right[:number]) for both in (self.answers, trained))
        fresh, old = (np.mean([anchor_losses(x.losses(s), self.temperature) for s in SIDES], 0) for x in parts)
        return fresh, old

    @cached_property
    def temperature(self) -> float:
        return self.task.target().temperature

    @cached_property
    def _pairs(self) -> PairSet:
        return _sample(self.task.held_out_pairs(), self.most)


def pairs_of(data: str, most: int, caption_field: str | None = None) -> PairSet:
    """Up to ``most`` pairs of shards, chosen at random but always the same; a UserError if there are too few."""
    shards = Shards.open(data, caption_field=caption_field)
    if len(shards) < FEWEST:
        raise UserError(f"{data} has {len(shards)} pairs, and variances need at least {FEWEST}: name more shards")
    return _sample(PairSet(shards), most)


def features(model: nn.Module, pairs: PairSet, workers: int = 0) -> Features:
    """Features of pairs by towers, or by a reference that has them."""
    towers = model.towers if isinstance(model, Reference) else model
    assert isinstance(towers, Towers)
    sides = pairs.embed(towers, Work(workers=workers))
    return Features(*(torch.as_tensor(side).double().cpu().numpy() for side in sides))


def mean_loss(answers: Features) -> float:
    """The mean contrastive loss of both sides less that of guessing, in nats, at the temperature that suits the model.

    At a temperature that is given a model without any contrast would do better than one that is sometimes wrong.
    """
    both = [answers.losses(side) for side in SIDES]

    def loss(log: float) -> float:
        sums: Any = [logsumexp(losses / np.exp(log), axis=1) for losses in both]
        return float(np.mean(sums)) - np.log(len(both[0]))

    best: Any = minimize_scalar(loss, bounds=tuple(np.log(SEARCHED)), method="bounded", options={"xatol": 1e-2})
    return float(best.fun)


def mistakes(answers: Features) -> float:
    """Share of images and texts whose own partner is not the nearest; one that ties is not."""
    return float(np.mean([(losses >= 0).sum(1) > 1 for losses in map(answers.losses, SIDES)]))


def _sample(pairs: PairSet, most: int) -> PairSet:
    if len(pairs) <= most:
        return pairs
    chosen = torch.randperm(len(pairs), generator=generator(0, "pairs"))[:most].sort().values
    return PairSet(pairs.shards, [pairs.ids[index] for index in chosen.tolist()], lines=pairs.lines)


def judge(options: Any, console: Console) -> Report:  # of the command
    """Ranks references on pairs that none of them should have been trained on."""
    data, proxy = options.data, options.proxy
    names = [*options.refs, *([proxy] if proxy else [])]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"a candidate is judged by another model: name at least two different ones, --ref A --ref B or --ref A "
            f"--proxy B; got {', '.join(names)}"
        )
    bundled = data is None or data == EMOJI_DATA
    temperature = TEMPERATURES[bundled]
    shards = str(emoji_shard("held_out_google") if bundled else data)
    judged_on = pairs_of(shards, options.pairs, options.caption_field)
    on, labels, answers = device_named(options.device), _labels(names), {}
    for name in names:
        console.print(f"asking {name}", markup=False, highlight=False)
        with untouched():
            answers[labels[name]] = features(load_reference(name).to(on), judged_on, options.workers)
    losses, errors = ({name: measure(one) for name, one in answers.items()} for measure in (mean_loss, mistakes))

    def compare(target: str, name: str) -> dict[str, Paired]:
        return views(answers[target], answers[name], temperature)

    ranked = rank(losses, compare, errors=errors, decide=DECIDE, proxy=proxy and labels[proxy])
    number = len(judged_on)
    return Report(
        title=f"Candidate references for {EMOJI_DATA if bundled else data}",
        question=QUESTION,
        verdict=_verdict(ranked),
        findings=_findings(ranked),
        cautions=_cautions(ranked, number),
        grids=[_order(ranked), _sides(ranked)],
        plots=[plots.candidates({one.name: one.ratio for one in ranked})],
        method=[
            f"{number:,} pairs, temperature {temperature:g}.",
            "Proxies, definitions, intervals and limits are explained in docs/variance.md of model-steering.",
        ],
        limits=[
            "Which reference trains the best target: where that was tried, an order by R was worth little, and the "
            "reference's own error was the better guide (docs/variance.md has the numbers)."
        ],
        numbers={"ranked": [asdict(one) for one in ranked], "pairs": number, "temperature": temperature},
        command=options.command,
    )


def _labels(names: list[str]) -> dict[str, str]:
    """Names short enough for a table, as long as they still differ."""
    tails = {name: name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}" for name in names}
    return tails if len(set(tails.values())) == len(names) else {name: name for name in names}


def _verdict(ranked: list[Ranked]) -> str:
    first = ranked[0]
    ratio = f"R = {span(first.ratio)}, predicted factor sqrt(R) = {short(first.ratio.value**0.5)}"
    if len(ranked) == 1:
        return f"{first.name}, against {first.proxy} as the target: {ratio}."
    if first.first >= SURE:
        return f"{first.name} takes most of the variance ({ratio}); it is first in {first.first:.0%} of the draws."
    return f"Undecided which is first: {first.name} ({ratio}) is so in {first.first:.0%} of the draws."


def _findings(ranked: list[Ranked]) -> list[str]:
    lines = []
    if larger := [one.name for one in ranked if one.ratio.low > 1]:
        lines.append(f"The loss of the proxy varies more with than without: {', '.join(larger)}.")
    within = sorted(ranked, key=lambda one: math.prod(one.views[f"{side} side, {WITHIN}"].value for side in SIDES))
    if within != ranked:
        order = ", ".join(one.name for one in within)
        lines.append(f"Within an anchor, which its robust problem sees, the order is {order}.")
    by_error = sorted(ranked, key=lambda one: one.error)
    if by_error != ranked:
        order = ", ".join(f"{one.name} ({one.error:.0%})" for one in by_error)
        lines.append(f"By their own error, which was the better guide where it was tried, the order is {order}.")
    return lines


def _cautions(ranked: list[Ranked], number: int) -> list[str]:
    lines = []
    if len(ranked) == 2 and {one.name for one in ranked} == {one.proxy for one in ranked}:
        lines.append(
            "two candidates that judge each other have the same Var(l - l_ref): the order says only whose own losses "
            "vary less; give a third one, or --proxy"
        )
    if len({one.proxy for one in ranked}) > 1:
        lines.append(
            "not all candidates have the same proxy: the best one is judged by the second best; --proxy makes it one"
        )
    lines += [
        f"{one.name} hardly tells these pairs apart ({-one.loss:.2g} nats better than guessing): it takes nothing away "
        f"and adds nothing, which leaves R near 1 and is no merit"
        for one in ranked
        if one.loss > -KNOWS
    ]
    if number < 200:
        lines.append(f"{number} pairs are few; use some hundreds at least")
    return lines


def _order(ranked: list[Ranked]) -> Grid:
    numbers = {one.name: f"no. {number}" for number, one in enumerate(ranked, 1)}
    rows = []
    for number, one in enumerate(ranked, 1):
        name = Cell(f"{number}. {one.name}", "best" if number == 1 and one.first >= SURE else "")
        root, at_beta, shares = short(one.ratio.value**0.5), short(one.ratio_at_beta), (one.first, one.error)
        judge_of = numbers.get(one.proxy, "the proxy")
        rows.append([name, span(one.ratio), root, at_beta, *(f"{x:.0%}" for x in shares), short(one.loss, 3), judge_of])
    heads = ["R [95 %]", "sqrt(R)", "R at beta*", "first in", "own error", "own loss"]
    note = (
        "R per pair, geometric mean of both sides; at beta* with the reference's losses scaled as is best. own error: "
        "pictures and texts whose partner is not the nearest. own loss: less that of guessing, in nats."
    )
    grid = Grid.of("Candidates, least variance first", ["reference"], [*heads, "judged by"], rows, note)
    return replace(grid, columns=(*grid.columns[:-1], Column("judged by", number=False)))


def _sides(ranked: list[Ranked]) -> Grid:
    rows = [
        [one.name if kind == PER_PAIR else "", kind, *(span(one.views[f"{side} side, {kind}"]) for side in SIDES)]
        for one in ranked
        for kind in (PER_PAIR, WITHIN, PER_ANCHOR)
    ]
    return Grid.of("R from either side", ["reference", "losses"], [f"{side} side" for side in SIDES], rows)
