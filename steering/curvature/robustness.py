"""Attacks within an l-infinity ball: on the tuned network itself, and carried over from the one with ReLUs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.curvature.classification import Classification, Split, answers, error, recipe, trained
from steering.curvature.methods import network
from steering.curvature.replace import replace_relus
from steering.curvature.samples import digits, drawn
from steering.curvature.search import choose
from steering.curvature.unit import set_beta
from steering.training.seeds import generator

TRAINING, VALIDATION, TEST = 800, 200, 300
RADII = (0.05, 0.1)


def attack(
    model: nn.Module,
    samples: Split,
    radius: float,
    *,
    steps: int = 20,
    restarts: int = 2,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Samples moved to raise the loss: projected gradient descent (Madry et al. 2018), the worst of some restarts.

    The projection onto ball and range is done to the sample between two gradients, never within the graph: a clamp
    within it has no gradient where a pixel is at its limit, and the attack would leave those pixels alone.

    Args:
        model: in evaluation mode.
        samples: ``[n, ...]`` and their classes.
        radius: largest change of any value.
        steps: of 2.5 radius / steps each, by the sign of the gradient.
        restarts: the first starts at the samples, the others at random within the ball.
        low, high: range of the values.
        seed: of the random starts.

    Returns:
        Like ``samples.x``, the one of largest loss that was met.
    """
    chance = generator(seed, "attack")
    worst = samples.x.clone()
    most = _losses(model, worst, samples.y)[0]
    for restart in range(restarts):
        start = torch.zeros_like(worst) if restart == 0 else 2 * torch.rand(worst.shape, generator=chance) - 1
        x = (samples.x + radius * start).clamp(low, high)
        for _ in range(steps):
            _, slope = _losses(model, x, samples.y)
            x = x + 2.5 * radius / steps * slope.sign()
            x = torch.minimum(torch.maximum(x, samples.x - radius), samples.x + radius).clamp(low, high)
            loss, _ = _losses(model, x, samples.y, slope=False)
            higher = loss > most
            worst[higher], most = x[higher], torch.maximum(loss, most)
    return worst


def _losses(model: nn.Module, x: Tensor, y: Tensor, *, slope: bool = True) -> tuple[Tensor, Tensor]:
    """Losses ``[n]`` and their gradient in the samples, like ``x``."""
    x = x.detach().requires_grad_(slope)
    with torch.set_grad_enabled(slope):
        losses = cross_entropy(model(x), y, reduction="none")
    gradient = torch.autograd.grad(losses.sum(), x)[0] if slope else torch.empty(0)
    return losses.detach(), gradient


def stands(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which samples are in the right class, ``[n]`` bool."""
    return answers(model, x).argmax(-1) == y


def under_attack(model: nn.Module, samples: Split, radius: float, carried: Tensor, seed: int) -> dict[str, float]:
    """Accuracy without attack, under one on the model, under a carried one, and under the worse of both by sample."""
    white = stands(model, attack(model, samples, radius, seed=seed), samples.y)
    black = stands(model, carried, samples.y)
    shares = {"white": white, "carried": black, "both": white & black}
    return {"clean": 1 - error(model, samples)} | {name: float(which.double().mean()) for name, which in shares.items()}


def measure(
    seed: int, betas: Sequence[float], radii: Sequence[float] = (0.05, 0.1), steps: int = 300
) -> dict[str, Any]:
    """One repetition on clean digits: accuracy under attack for every beta, and of the one chosen for each radius.

    Returns:
        By radius: ``validation``, one dict of accuracies for every beta; ``chosen``; ``test`` for ReLU and the chosen.
    """
    chance = generator(seed, "curvature", "robustness")
    training, validation, rest = drawn(digits(), [TRAINING, VALIDATION], chance)
    test = rest.take(torch.arange(TEST))
    task = Classification(lambda: network(64, 64, 3, 10), training, validation, test, recipe(steps, 100, 3e-3))
    plain = trained(task, task.recipe, seed).requires_grad_(False)
    tuned = replace_relus(plain, 1.0, example=(test.x[:2],)).model
    return {
        "sizes": [TRAINING, VALIDATION, TEST],
        "radii": [_at(plain, tuned, validation, test, radius, betas, seed) | {"radius": radius} for radius in radii],
    }


def _at(
    plain, tuned, validation: Split, test: Split, radius: float, betas: Sequence[float], seed: int
) -> dict[str, Any]:
    """Everything at one radius; the test samples are attacked for ReLU and for the chosen beta alone."""
    carried = attack(plain, validation, radius, seed=seed)
    seen: list[dict[str, float]] = []

    def score(beta: float) -> float:
        set_beta(tuned, beta)
        seen.append(under_attack(tuned, validation, radius, carried, seed))
        return 1 - seen[-1]["both"]

    choice = choose(betas, score)
    carried = attack(plain, test, radius, seed=seed)
    tested = {}
    for name, beta in (("relu", 1.0), ("search", choice.chosen)):
        set_beta(tuned, beta)
        tested[name] = under_attack(tuned, test, radius, carried, seed)
    return {"betas": choice.betas, "validation": seen, "chosen": choice.chosen, "test": tested}
