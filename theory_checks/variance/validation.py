"""Is the order that is predicted before training the order after it? References of known worth, trained with each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray
from scipy.stats import kendalltau
from torch import nn

from steering.errors import UserError
from steering.reports.grid import Cell, Grid
from steering.reports.report import Report
from steering.runs.config import RunConfig
from steering.settings import Recipe
from steering.task import Batch, Losses, Task, exchange
from steering.theory_checks.bootstrap import OUTER, Drawn, Estimate, interval
from steering.theory_checks.training_sets import concatenate, train_on
from steering.theory_checks.variance import bench, plots
from steering.theory_checks.variance.bench import Scored, Trainer, plain_and_steered
from steering.theory_checks.variance.measure import FIGURES, stand_in
from steering.theory_checks.variance.verdicts import short
from steering.training.seeds import derive

POOL = 1 / 3  # of the held-out samples, for references that have to be trained
LONGER = 4  # times the steps of a recipe until an overfit reference has learnt by heart


def steered_by_shuffled(task: Task, model: nn.Module) -> Task:
    """One whose reference gives every sample the losses of another: it knows how losses spread, and nothing else."""

    def losses(which: nn.Module, batch: Batch) -> Losses:
        answers = task.losses(which, batch)
        if which is not model:
            return answers
        parts = {name: getattr(answers, name) for name in ("values", "mask", "outputs")}
        return answers._replace(**{name: part.roll(1, 0) for name, part in parts.items() if part is not None})

    return exchange(task, reference=lambda: model, losses=losses)


class Scaled(nn.Module):
    """A classifier with its scores multiplied: the same answers, more or less sure of them."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.factor * self.model(*inputs)


def split(batches: list[Batch], share: float) -> tuple[Batch, Batch]:
    """The first share of the samples, and the rest."""
    samples = concatenate(*batches)
    cut = round(share * len(samples))
    return samples.take(torch.arange(cut)), samples.take(torch.arange(cut, len(samples)))


def check(task: Task, name: str) -> None:
    """Makes sure that a task can be validated on, before anything is trained; a UserError if not."""
    if "noise" not in getattr(task, "__dataclass_fields__", {}):
        raise UserError(f"--validate needs a task of classes with an option noise, digits or blobs; {name} has none")
    drawn = task.seeded(0)
    _score(drawn, drawn.reference(), bench.held_out(drawn)[0])


def validate(task: Task, config: RunConfig, trainer: Trainer, command: str) -> Report:
    """Predicts, trains with every candidate, compares; ``check`` has passed."""
    seeds = [_one_seed(task.seeded(seed), config.recipe, trainer, seed) for seed in range(config.recipe.seeds)]
    predictions, trained, without = zip(*seeds, strict=True)
    names, first = list(trained[0]), next(iter(predictions[0]))
    errors = np.array([list(one.values()) for one in trained])
    predicted = {name: np.stack([one[name] for one in predictions]) for name in predictions[0]}
    worths = {name: worth(rows, errors) for name, rows in predicted.items()}
    geometric = {name: np.exp(np.log(np.maximum(rows, 1e-12)).mean(0)).tolist() for name, rows in predicted.items()}
    means = {name: dict(zip(names, values, strict=True)) for name, values in geometric.items()}
    after = {name: _over_seeds(column) for name, column in zip(names, errors.T, strict=True)}
    plain = float(np.mean(without))
    random = float((errors.mean(1) - errors.min(1)).mean())
    return Report(
        title=f"Worth of the ranking: {config.task}",
        question="Does the order of references that R predicts agree with that of the errors after training with each?",
        verdict=_verdict(worths[first].tau),
        findings=_findings(worths, random),
        cautions=[f"{len(errors)} seeds are too few; use at least 5"] if len(errors) < 5 else [],
        grids=[_worth_grid(worths, random), _candidate_grid(means, after, plain)],
        plots=[
            plots.prediction(file, name, means[name], after, plain)
            for file, name in (("prediction", first), ("own", "own error"))
        ],
        method=[
            f"{len(errors)} seeds; each draws data, noise and references anew, and every candidate steers one training "
            f"by the recipe's arm '{plain_and_steered(config.recipe)[1]}'.",
            "Candidates, predictions and limits are explained in docs/variance.md of model-steering.",
        ],
        numbers={
            "worth": {name: one._asdict() for name, one in worths.items()},
            "random_regret": random,
            "candidates": names,
            "errors": errors,
            "predicted": predicted,
            "plain": list(without),
        },
        command=command,
    )


def _one_seed(
    task: Task, recipe: Recipe, trainer: Trainer, seed: int
) -> tuple[dict[str, ndarray], dict[str, float], float]:
    """Every prediction, ``[candidates]``, less should be better; errors after training with each, and without any."""
    plain, steered = plain_and_steered(recipe)
    assert steered is not None
    pool, fresh = split(bench.held_out(task), POOL)
    clean_pool, clean = split(bench.held_out(replace(task, noise=0.0)), POOL)  # type: ignore[type-var]
    candidates = _candidates(task, recipe, trainer, seed, pool, clean_pool)
    larger = train_on(task, concatenate(bench.trained_on(task, bench.MOST_WHOLE), pool))
    target = trainer("plain", task, recipe.arms[plain], recipe, seed)
    best = trainer("best", larger, recipe.arms[plain], recipe, seed)
    scores = {name: _score(candidate, candidate.reference(), fresh) for name, candidate in candidates.items()}
    models = [
        trainer(f"with-{name.replace(' ', '-')}", candidate, recipe.arms[steered], recipe, seed)
        for name, candidate in candidates.items()
    ]
    error, *errors = (float(_score(task, model, clean).wrong.mean()) for model in (target, *models))
    proxies = {"R, plainly trained target": target, "R, best model at hand": best}
    predicted = _predict(scores, {name: _score(task, model, fresh) for name, model in proxies.items()})
    return predicted, dict(zip(candidates, errors, strict=True)), error


def _candidates(
    task: Task, recipe: Recipe, trainer: Trainer, seed: int, pool: Batch, clean_pool: Batch
) -> dict[str, Task]:
    """The task with references from good to useless, trained on samples that no target or measurement sees."""
    reference, arm = task.reference(), recipe.arms[plain_and_steered(recipe)[0]]
    hard = recipe.model_copy(update={"steps": LONGER * recipe.steps, "weight_decay": 0.0})
    models = {
        "own": reference,
        "over-confident": Scaled(reference, 3.0),
        "under-confident": Scaled(reference, 1 / 3),
        "shuffled": reference,
        "noisy labels": trainer("noisy", train_on(task, pool), arm, recipe, seed),
        "overfit": trainer("overfit", train_on(task, pool), arm, hard, seed),
        "leak": trainer("leak", task, arm, hard, seed),
    }
    if any((pool[name] != clean_pool[name]).any() for name in pool.fields):
        models["clean labels"] = trainer("clean", train_on(task, clean_pool), arm, recipe, seed)
    return {
        n: steered_by_shuffled(task, m) if n == "shuffled" else exchange(task, reference=lambda m=m: m)
        for n, m in models.items()
    }


def _predict(scores: Mapping[str, Scored], proxies: Mapping[str, Scored]) -> dict[str, ndarray]:
    """Every prediction for every candidate, ``[candidates]``."""
    means = {name: float(one.losses.mean()) for name, one in scores.items()}
    others = {name: scores[stand_in(means, name)] for name in scores}

    def figure(name: str, targets: Mapping[str, Scored]) -> ndarray:
        of = FIGURES[name].of
        return np.array([of(bench.paired(targets[key], one).moments()) for key, one in scores.items()])

    return {
        "R, best other candidate": figure("ratio", others),
        **{name: figure("ratio", dict.fromkeys(scores, proxy)) for name, proxy in proxies.items()},
        "R at beta*": figure("ratio_at_beta", others),
        "own loss": np.array(list(means.values())),
        "own error": np.array([one.wrong.mean() for one in scores.values()]),
    }


def _score(task: Task, model: nn.Module, batch: Batch) -> Scored:
    scored = bench.score(task, model, [batch])
    if not isinstance(scored, Scored) or scored.outputs is None:
        name = type(task).__name__
        raise UserError(f"--validate needs losses that are a classifier's cross-entropy; {name} has others")
    return scored


class Worth(NamedTuple):
    """What a prediction is worth."""

    tau: Estimate  # Kendall's tau with the trained order, the mean over seeds of each seed's
    overall: float  # tau of the means over seeds
    regret: Estimate  # error of the first-ranked candidate less that of the best one, mean over seeds


def worth(predicted: ndarray, errors: ndarray, *, seed: int = 0) -> Worth:
    """Compares ``[seeds, candidates]`` predictions with errors; 95 % intervals by a bootstrap over seeds."""
    taus = np.array([_tau(p, e) for p, e in zip(predicted, errors, strict=True)])
    best = predicted <= predicted.min(1, keepdims=True) * (1 + 1e-9)  # two that judge each other have the same R
    regret = np.where(best, errors, 0).sum(1) / best.sum(1) - errors.min(1)
    return Worth(_over_seeds(taus, seed), _tau(predicted.mean(0), errors.mean(0)), _over_seeds(regret, seed))


def _tau(predicted: ndarray, errors: ndarray) -> float:
    order: Any = kendalltau(predicted, errors)
    return float(np.nan_to_num(order.statistic))  # no order at all is no agreement


def _over_seeds(values: ndarray, seed: int = 0) -> Estimate:
    chance = np.random.default_rng(derive(seed, "seeds"))
    draws = values[chance.integers(len(values), size=(OUTER, len(values)))].mean(1)
    return interval(Drawn(float(values.mean()), draws), len(values))


def _span(value: Estimate, decimals: int = 2, factor: float = 1.0) -> str:
    middle, low, high = (f"{factor * x:.{decimals}f}" for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def _verdict(tau: Estimate) -> str:
    if tau.low > 0:
        answer = "is largely the trained one" if tau.low > 0.5 else "agrees with the trained one, but loosely"
    else:
        answer = "is against the trained one" if tau.high < 0 else "tells nothing certain of the trained one"
    return f"The predicted order {answer}: Kendall's tau {_span(tau)}."


def _findings(worths: Mapping[str, Worth], random: float) -> list[str]:
    best, first = max(worths, key=lambda name: worths[name].tau.value), next(iter(worths))
    chosen = f"The best of the predictions is '{best}' (tau {worths[best].tau.value:.2f}), chosen afterwards."
    return [
        f"Taking the candidate of the smallest predicted R costs {100 * worths[first].regret.value:.1f} points of "
        f"error against the best one; one at random costs {100 * random:.1f}.",
        *([chosen] if best != first else []),
    ]


def _worth_grid(worths: Mapping[str, Worth], random: float) -> Grid:
    top = max(one.tau.value for one in worths.values())
    rows = []
    for name, one in worths.items():
        tau = Cell(_span(one.tau), "best" if one.tau.value == top else "")
        rows.append([name, tau, f"{one.overall:.2f}", _span(one.regret, 1, 100)])
    note = (
        f"tau: Kendall's, of both orders, mean over seeds. regret: of the first-ranked; at random {100 * random:.1f}."
    )
    return Grid.of("What a prediction is worth", ["prediction"], ["tau", "of means", "regret, points"], rows, note)


def _candidate_grid(means: Mapping[str, dict[str, float]], errors: Mapping[str, Estimate], plain: float) -> Grid:
    rows = []
    for name, error in sorted(errors.items(), key=lambda pair: pair[1].value):
        tone = "better" if error.high < plain else ("worse" if error.low > plain else "")
        rows.append([name, *(short(values[name]) for values in means.values()), Cell(_span(error, 1, 100), tone)])
    rows.append([Cell("no reference", "quiet"), *[""] * len(means), Cell(f"{100 * plain:.1f}", "quiet")])
    heads = [*means, "error after training, %"]
    note = "Predictions: geometric means over seeds."
    return Grid.of("The candidates, best first after training", ["reference"], heads, rows, note)
