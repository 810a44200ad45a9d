"""Features of CLIP models on held-out pairs, each model seeing them its own way."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import PairSet
from steering.clip.models import Towers
from steering.clip.reference.model import Reference
from steering.clip.task import EMOJI_DATA
from steering.errors import UserError
from steering.theory_checks.variance.bench import Bench
from steering.theory_checks.variance.paired import SIDES, Features, anchor_losses
from steering.training.seeds import generator

FEWEST = 10  # pairs below which there is nothing to measure
TEMPERATURES = (1e-3, 10.0)  # temperatures among which the best one of a model is searched


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
        return float(np.mean([logsumexp(losses / np.exp(log), axis=1) for losses in both])) - np.log(len(both[0]))

    best: Any = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-2})
    return float(best.fun)


def mistakes(answers: Features) -> float:
    """Share of images and texts whose own partner is not the nearest; one that ties is not."""
    return float(np.mean([(losses >= 0).sum(1) > 1 for losses in map(answers.losses, SIDES)]))


def _sample(pairs: PairSet, most: int) -> PairSet:
    if len(pairs) <= most:
        return pairs
    chosen = torch.randperm(len(pairs), generator=generator(0, "pairs"))[:most].sort().values
    return PairSet(pairs.shards, [pairs.ids[index] for index in chosen.tolist()], lines=pairs.lines)
