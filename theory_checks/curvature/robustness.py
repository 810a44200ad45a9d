"""Attacks within an l-infinity ball: on the tuned network itself, and carried over from the one with ReLUs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.curvature import replace_relus, set_beta
from steering.reports.grid import Cell
from steering.reports.report import Plot
from steering.runs.statistics import interval
from steering.theory_checks.curvature import section
from steering.theory_checks.curvature.search import choose
from steering.theory_checks.curvature.small import Split, correct, digits, fit, network, random_parts, recipe
from steering.training.seeds import generator

TRAINING, VALIDATION, TEST = 800, 200, 300
RADII = (0.05, 0.1)


def attack(
    model: nn.Module, samples: Split, radius: float, *, steps: int = 20, restarts: int = 2, seed: int = 0
) -> Tensor:
    """Samples moved to raise the loss: projected gradient descent (Madry et al. 2018), the worst of some restarts.

    The projection onto ball and range is done to the sample between two gradients, never within the graph: a clamp
    within it has no gradient where a pixel is at its limit, and the attack would leave those pixels alone.

    Args:
        model: in evaluation mode.
        samples: ``[n, ...]`` from 0 to 1, and their classes.
        radius: largest change of any value.
        steps: of 2.5 radius / steps each, by the sign of the gradient.
        restarts: the first starts at the samples, the others at random within the ball, by the seed.

    Returns:
        Like ``samples.x``, the one of largest loss that was met.
    """
    chance = generator(seed, "attack")
    worst = samples.x.clone()
    highest = _losses(model, worst, samples.y).detach()
    for restart in range(restarts):
        start = torch.zeros_like(worst) if restart == 0 else 2 * torch.rand(worst.shape, generator=chance) - 1
        x = (samples.x + radius * start).clamp(0, 1)
        for _ in range(steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(_losses(model, x, samples.y).sum(), x)
            x = x.detach() + 2.5 * radius / steps * gradient.sign()
            x = torch.minimum(torch.maximum(x, samples.x - radius), samples.x + radius).clamp(0, 1)
            with torch.no_grad():
                losses = _losses(model, x, samples.y)
            higher = losses > highest
            worst[higher], highest = x[higher], torch.maximum(losses, highest)
    return worst


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y, reduction="none")


def under_attack(model: nn.Module, samples: Split, radius: float, carried: Tensor, seed: int) -> dict[str, float]:
    """Accuracy without attack, under one on the model, under a carried one, and under the worse of both by sample."""
    clean = correct(model, samples)
    white = correct(model, Split(attack(model, samples, radius, seed=seed), samples.y))
    black = correct(model, Split(carried, samples.y))
    stands = {"clean": clean, "white": white, "carried": black, "both": white & black}
    return {name: float(which.double().mean()) for name, which in stands.items()}


def measure(
    seed: int, betas: Sequence[float], steps: int = 300, radii: Sequence[float] = (0.05, 0.1)
) -> dict[str, Any]:
    """One repetition on clean digits: accuracy under attack for every beta, and of the one chosen for each radius.

    Returns:
        By radius: ``validation``, one dict of accuracies for every beta; ``chosen``; ``test`` for ReLU and the chosen.
    """
    chance = generator(seed, "curvature", "robustness")
    training, validation, rest = random_parts(digits(), [TRAINING, VALIDATION], chance)
    test = rest.take(torch.arange(TEST))
    plain = fit(lambda: network(64, 64, 3, 10), training, recipe(steps, 100, 3e-3), seed).requires_grad_(False)
    tuned = replace_relus(plain, 1.0, example=(test.x[:2],)).model

    def at_radius(radius: float) -> dict[str, Any]:
        accuracies: list[dict[str, float]] = []
        carried, carried_test = (attack(plain, split, radius, seed=seed) for split in (validation, test))

        def score(beta: float) -> float:
            set_beta(tuned, beta)
            accuracies.append(under_attack(tuned, validation, radius, carried, seed))
            return 1 - accuracies[-1]["both"]

        choice, tested = choose(betas, score), {}
        for name, beta in (("relu", 1.0), ("search", choice.chosen)):
            set_beta(tuned, beta)
            tested[name] = under_attack(tuned, test, radius, carried_test, seed)
        return vars(choice) | {"validation": accuracies, "test": tested, "radius": radius}

    return {"sizes": [TRAINING, VALIDATION, TEST], "radii": list(map(at_radius, radii))}


def summarise(results: section.Results) -> section.Section:
    """Attacks within an l-infinity ball."""
    changes, rows, cautions = {}, [], []
    for at in zip(*(result["radii"] for result in results), strict=True):  # all repetitions at one radius
        radius = f"{at[0]['radius']:g}"
        relu, tuned = ([1 - one["test"][name]["both"] for one in at] for name in ("relu", "search"))
        change = changes[f"attacks up to {radius}"] = section.fewer(tuned, relu)
        for name, label, against, betas in (
            ("relu", "ReLU", section.NONE, [1.0]),
            ("search", "beta searched", section.gain(change), [one["chosen"] for one in at]),
        ):
            cells = [
                section.percent([one["test"][name][kind] for one in at])
                for kind in ("clean", "white", "carried", "both")
            ]
            rows.append((f"{label}, up to {radius}", *cells, against, Cell(section.chosen(betas), "quiet")))
        tested = [one["test"]["search"] for one in at]
        masked = interval([100 * (accuracy["white"] - accuracy["carried"]) for accuracy in tested]).mean
        if masked > 1:
            cautions.append(
                f"At changes up to {radius} the attack carried over from the ReLU network did more harm to the tuned "
                f"one than the attack on itself (by {masked:.1f} points): its gradients are masked."
            )
    columns = "network|clean (%)|attacked (%)|carried over (%)|both (%)|fewer errors under both|beta"
    note = (
        f"Values are accuracies. The validation split chose between {len(results[0]['radii'][0]['betas'])} values of "
        "beta at each radius, by the accuracy under both attacks; the test split saw ReLU and the chosen one alone."
    )
    return section.Section(
        changes=changes,
        cautions=cautions,
        grids=[section.grid("Attacks on the network's own gradient, and carried over", columns, rows, results, note)],
        plots=[_plot(results)],
        method=[f"Attacks: {section.sizes(results)}"],
    )


def _plot(results: Sequence[dict[str, Any]]) -> Plot:
    """Validation accuracy against beta for every radius: clean, attacked, and under attacks carried over."""
    labels = {"white": "attack on the network itself", "carried": "attack made for its ReLU twin", "clean": "no attack"}
    panels = []
    for at in zip(*(result["radii"] for result in results), strict=True):
        curves = [[[100 * seen[kind] for seen in one["validation"]] for one in at] for kind in labels]
        panels.append((f"changes up to {at[0]['radius']:g} a pixel", at[0]["betas"], curves))
    caption = (
        "Accuracy on the validation split against beta; a thin line is a repetition, the thick one their mean. Where "
        "the attack made for the ReLU network does more harm than the attack on the network itself, gradients are "
        "masked and robustness is an illusion."
    )
    return Plot("robustness", "Under attack", caption, section.over_beta(panels, "accuracy (%)", list(labels.values())))
