"""Features of CLIP models on held-out pairs, each model seeing them its own way."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor, nn

from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.suites import PairSet
from steering.clip.reference.online import Reference
from steering.clip.task import EMOJI_DATA, Clip
from steering.clip.towers import Towers
from steering.errors import UserError
from steering.theory_checks.variance.paired import SIDES, Features, Paired, anchor_losses, views
from steering.training.seeds import generator

FEWEST = 10  # pairs below which there is nothing to measure
OWN = (1e-3, 10.0)  # temperatures among which a model's own is looked for


@dataclass
class ClipBench:
    """Held-out pairs of a CLIP task, with as many wrong captions as its training pairs have.

    Args:
        task: whose pairs these are.
        most: pairs to use; similarities of all with all are kept.
    """

    task: Clip
    most: int

    def score(self, model: nn.Module) -> Features:
        """A model's features of the held-out pairs."""
        images, texts = self._pairs.embed(_towers(model), Work())
        return Features(_array(images), _array(texts[_captions(len(texts), self._noise)]))

    def compare(self, target: Features, reference: Features) -> dict[str, Paired]:
        return views(target, reference, self.temperature)

    def leak(self, reference: nn.Module, answers: Features) -> tuple[np.ndarray, np.ndarray]:
        """The reference's anchor losses of fresh and of training pairs, against as many negatives each."""
        pairs = self.task.training_pairs(len(answers.left))
        images, texts = pairs.embed(_towers(reference), Work())
        trained = Features(_array(images), _array(texts))
        number = min(len(answers.left), len(trained.left))
        fresh, old = (
            _anchors(Features(f.left[:number], f.right[:number]), self.temperature) for f in (answers, trained)
        )
        return fresh, old

    @cached_property
    def temperature(self) -> float:
        return self.task.target().temperature

    @property
    def _noise(self) -> float:
        return self.task.noise if self.task.data == EMOJI_DATA else 0.0  # other held-out pairs are as they come

    @cached_property
    def _pairs(self) -> PairSet:
        return _some(self.task.held_out_pairs(), self.most)


def pairs_of(data: str, most: int, caption_field: str | None = None) -> PairSet:
    """Up to ``most`` pairs of shards, chosen at random but always the same.

    Raises:
        UserError: there are too few.
    """
    shards = Shards.open(data, caption_field=caption_field)
    if len(shards) < FEWEST:
        raise UserError(f"{data} has {len(shards)} pairs, and variances need at least {FEWEST}: name more shards")
    return _some(PairSet(shards), most)


def features(towers: Towers, pairs: PairSet, workers: int = 0) -> Features:
    """A model's features of pairs."""
    images, texts = pairs.embed(towers, Work(workers=workers))
    return Features(_array(images), _array(texts))


def mean_loss(found: Features) -> float:
    """The mean contrastive loss of both sides less that of guessing, in nats, at the temperature that suits the model.

    At a temperature that is given a model without any contrast would do better than one that is sometimes wrong.
    """

    both = [found.losses(side) for side in SIDES]

    def loss(log: float) -> float:
        return float(np.mean([logsumexp(losses / np.exp(log), axis=1) for losses in both])) - np.log(len(both[0]))

    best: Any = minimize_scalar(loss, bounds=tuple(np.log(OWN)), method="bounded", options={"xatol": 1e-2})
    return float(best.fun)


def mistakes(found: Features) -> float:
    """Share of images and texts whose own partner is not the nearest; one that ties is not."""
    return float(np.mean([(losses >= 0).sum(1) > 1 for losses in map(found.losses, SIDES)]))


def _anchors(found: Features, temperature: float) -> np.ndarray:
    """Anchor losses, the mean of both sides, ``[n]``."""
    return np.mean([anchor_losses(found.losses(side), temperature) for side in SIDES], 0)


def _some(pairs: PairSet, most: int) -> PairSet:
    if len(pairs) <= most:
        return pairs
    chosen = torch.randperm(len(pairs), generator=generator(0, "pairs"))[:most].sort().values
    return PairSet(pairs.shards, [pairs.ids[place] for place in chosen.tolist()], lines=pairs.lines)


def _captions(number: int, noise: float) -> Tensor:
    """Whose caption every pair has: a share of them pass theirs on in a circle."""
    order = torch.arange(number)
    wrong = torch.randperm(number, generator=generator(0, "wrong captions"))[: round(noise * number)]
    order[wrong] = wrong.roll(1)
    return order


def _towers(model: nn.Module) -> Towers:
    towers = model.towers if isinstance(model, Reference) else model
    assert isinstance(towers, Towers)
    return towers


def _array(rows: Tensor | Sequence) -> np.ndarray:
    return torch.as_tensor(rows).double().cpu().numpy()
