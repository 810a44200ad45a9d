"""What the curvature studies share: samples, networks, their training, and the choice of beta on a validation split."""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from steering.curvature import set_beta
from steering.errors import UserError, did_you_mean
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Metric, Recipe
from steering.task import Task, exchange
from steering.tasks.blobs import Blobs
from steering.tasks.in_memory import Samples, clean, corrupted
from steering.theory_checks.training_sets import train_on
from steering.training.loop import Training
from steering.training.seeds import generator

PLAIN = Arm(rule="uniform", subtract=False)
MOST = 200  # values of beta
CHUNK = 256  # samples at a time, where nothing is learned


@cache
def digits(first: int = 0, last: int = 9) -> Samples:
    """Scikit-learn's images ``[n, 64]`` from 0 to 1 of a range of digits, all 1797 if not given; classes begin at 0."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = (labels >= first) & (labels <= last)
    return clean(torch.from_numpy(pixels[chosen] / 16).float(), torch.from_numpy(labels[chosen] - first).long())


def take(samples: Samples, indices: Tensor) -> Samples:
    return Samples(*(part[indices] for part in samples))


def random_parts(samples: Samples, sizes: list[int], chance: torch.Generator) -> list[Samples]:
    """Parts of these sizes, and the rest, without overlap."""
    if sum(sizes) >= len(samples.y):
        raise UserError(f"{len(samples.y)} samples are too few for parts of {sizes} and a test split")
    order = torch.randperm(len(samples.y), generator=chance)
    return [take(samples, indices) for indices in order.tensor_split(torch.tensor(sizes).cumsum(0).tolist())]


def spirals(number: int, noise: float, seed: int, name: str) -> Samples:
    """Two spirals of one turn and a half in the plane, ``[number, 2]``, within about -1 and 1."""
    chance = generator(seed, "spirals", name)
    y = torch.arange(number) % 2
    radius = torch.rand(number, generator=chance).sqrt()
    angle = 3 * math.pi * radius + math.pi * y
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return corrupted(x + 0.03 * torch.randn(number, 2, generator=chance), y, noise, 2, chance)


def no_reference() -> nn.Module:
    raise UserError("these samples come without a reference: give the task one, or do not subtract its loss")


def classification(
    target: Callable[[], nn.Module],
    training: Samples,
    validation: Samples,
    test: Samples,
    settings: Recipe,
    reference: Callable[[], nn.Module] = no_reference,
) -> Task:
    """A task of samples in memory, whose losses are those of any classifier; ``validation`` is to choose on."""
    parts = {"target": target, "reference": reference, "recipe": settings, "held_out": validation.batches}
    parts["evaluate"] = lambda model: {"error": error(model, test)}
    parts["metrics"] = {"error": Metric(label="test error", better="low", percent=True)}
    classifier = train_on(Blobs(), training.batch(torch.arange(len(training.y))))
    return exchange(classifier, **parts, reference_batch=None)


def recipe(steps: int, batch: int, learning_rate: float, *, weight_decay: float = 0.0) -> Recipe:
    """Adam with a cosine to zero."""
    schedule: dict = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "weight_decay": weight_decay}
    return Recipe(**schedule, optimizer="adamw", arms={"plain": PLAIN}, baseline="plain")


def trained(task: Task, settings: Recipe, seed: int, arm: Arm = PLAIN, device: str = "cpu") -> nn.Module:
    """The task's target at the end of a recipe, in evaluation mode."""
    training = Training(task, arm, settings, reference=ReferenceLosses(task, device), seed=seed, device=device)
    for _ in range(settings.steps):
        training.step()
    return training.result.eval()


def fit(
    target: Callable[[], nn.Module], samples: Samples, settings: Recipe, seed: int, device: str = "cpu"
) -> nn.Module:
    """A model that has learned the samples by a recipe, in evaluation mode."""
    return trained(classification(target, samples, samples, samples, settings), settings, seed, device=device)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What a model gives for ``[n, ...]`` samples, computed on its own device a chunk at a time."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    return torch.cat([model(chunk.to(device)).cpu() for chunk in x.split(CHUNK)])


def correct(model: nn.Module, samples: Samples) -> Tensor:
    """Which samples a model puts into the right class, ``[n]`` bool."""
    return outputs(model, samples.x).argmax(-1) == samples.y


def error(model: nn.Module, samples: Samples) -> float:
    """Share of samples that a model puts into a wrong class."""
    return float((~correct(model, samples)).double().mean())


def network(inputs: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """A plain network with ReLUs."""
    layers = [part for i, o in pairwise([inputs, *[width] * depth]) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def choose(betas: Sequence[float], score: Callable[[float], float]) -> dict[str, Any]:
    """Scores every beta and the ReLU, which is always among them, once; a lower score is better.

    Returns:
        ``betas`` in falling order, the first is 1; ``validation``, the score of each; ``chosen``, the beta of the
        lowest score that is nearest to 1.
    """
    tried = with_relu(betas)
    scores = [score(beta) for beta in tried]
    return {"betas": tried, "validation": scores, "chosen": tried[scores.index(min(scores))]}


def check_name(kind: str, name: str, names: Collection[str]) -> None:
    """Raises UserError for a name that is not among these."""
    if name not in names:
        hint = did_you_mean(name, names) or "."
        raise UserError(f"no {kind} is named {name!r}{hint} Known: {', '.join(names)}")


def with_relu(betas: Sequence[float]) -> list[float]:
    """Every beta once, and 1, in falling order; UserError if one is not within 0 and 1."""
    if wrong := [beta for beta in betas if not 0 <= beta <= 1]:
        raise UserError(f"beta is within 0 and 1, got {wrong[0]:g}")
    return sorted({1.0, *betas}, reverse=True)


def parse(text: str) -> list[float]:
    """``0.5,0.9`` or ``first:last:step`` as numbers, and 1; UserError if it is neither."""
    try:
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
        if ":" in text:
            first, last, step = numbers
            if not step > 0 or last < first:
                raise ValueError
            numbers = [round(first + index * step, 10) for index in range(int((last - first) / step + 1e-9) + 1)]
    except ValueError:
        raise UserError(f"--betas takes 0.5,0.7,0.9 or first:last:step such as 0.5:1:0.05, got {text!r}") from None
    if len(numbers) > MOST:
        raise UserError(f"--betas {text} are {len(numbers)} values: use at most {MOST}")
    return with_relu(numbers)


def probe_error(backbone: nn.Module, beta: float, training: Samples, evaluated: Samples) -> float:
    """Error on ``evaluated`` of a new head, logistic regression (C = 1) on the features of ``training``.

    The backbone gives features ``[n, width]``; its units keep this beta.
    """
    set_beta(backbone, beta)
    features = [outputs(backbone, samples.x).double().numpy() for samples in (training, evaluated)]
    head = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():  # an unfinished fit is a worse head, which the validation split sees
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(features[0], training.y.numpy())
    return float((torch.as_tensor(head.predict(features[1])) != evaluated.y).double().mean())
