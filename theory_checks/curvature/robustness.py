"""Attacks within an l-infinity ball: on the tuned network itself, and carried over from the one with ReLUs."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.curvature import replace_relus, set_beta
from steering.reports.grid import Cell
from steering.reports.report import Plot
from steering.tasks.in_memory import Samples, clean
from steering.theory_checks.curvature import section
from steering.theory_checks.curvature.small import choose, correct, digits, fit, network, random_parts, recipe, take
from steering.training.seeds import generator

TRAINING, VALIDATION, TEST = 800, 200, 300
RADII = (0.05, 0.1)
STEPS = 20  # of an attack, each 2.5 radius / STEPS by the sign of the gradient
KINDS = ("clean", "white", "carried", "both")


def attack(model: nn.Module, samples: Samples, radius: float, *, seed: int = 0) -> Tensor:
    """Samples moved to raise the loss: projected gradient descent (Madry et al. 2018), from the sample and at random.

    The projection onto ball and range is done to the sample between two gradients, never within the graph: a clamp
    within it has no gradient where a pixel is at its limit, and the attack would leave those pixels alone.

    Args:
        model: in evaluation mode.
        samples: ``[n, ...]`` from 0 to 1, and their classes; those of largest loss are returned.
        radius: largest change of any value.
        seed: of the second start, within the ball.
    """

    def losses(x: Tensor) -> Tensor:
        return cross_entropy(model(x), samples.y, reduction="none")

    worst, highest = samples.x.clone(), losses(samples.x).detach()
    noise = 2 * torch.rand(worst.shape, generator=generator(seed, "attack")) - 1
    for start in (torch.zeros_like(noise), noise):
        x = (samples.x + radius * start).clamp(0, 1)
        for _ in range(STEPS):
            (gradient,) = torch.autograd.grad(losses(x.requires_grad_()).sum(), x)
            x = x.detach() + 2.5 * radius / STEPS * gradient.sign()
            x = torch.minimum(torch.maximum(x, samples.x - radius), samples.x + radius).clamp(0, 1)
            reached = losses(x).detach()
            higher = reached > highest
            worst[higher], highest = x[higher], torch.maximum(reached, highest)
    return worst


def under_attack(model: nn.Module, samples: Samples, radius: float, carried: Tensor, seed: int) -> dict[str, float]:
    """Accuracy without attack, under one on the model, under a carried one, and under the worse of both by sample."""
    attacked = attack(model, samples, radius, seed=seed)
    plain, white, black = (correct(model, clean(x, samples.y)) for x in (samples.x, attacked, carried))
    return {kind: float(x.double().mean()) for kind, x in zip(KINDS, (plain, white, black, white & black), strict=True)}


def measure(seed: int, betas: Sequence[float], steps: int = 300, radii: Sequence[float] = RADII) -> dict[str, Any]:
    """One repetition on clean digits: accuracy under attack for every beta, and of the one chosen for each radius.

    Returns:
        By radius: ``validation``, one dict of accuracies for every beta; ``chosen``; ``test`` for ReLU and the chosen.
    """
    chance = generator(seed, "curvature", "robustness")
    training, validation, rest = random_parts(digits(), [TRAINING, VALIDATION], chance)
    test = take(rest, torch.arange(TEST))
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
        for name, beta in (("relu", 1.0), ("search", choice["chosen"])):
            set_beta(tuned, beta)
            tested[name] = under_attack(tuned, test, radius, carried_test, seed)
        return choice | {"validation": accuracies, "test": tested, "radius": radius}

    return {"sizes": [TRAINING, VALIDATION, TEST], "radii": list(map(at_radius, radii))}


def summarise(results: section.Results) -> section.Section:
    """Attacks within an l-infinity ball."""
    changes, rows, cautions = {}, [], []
    for at in zip(*(result["radii"] for result in results), strict=True):  # all repetitions at one radius
        radius = f"{at[0]['radius']:g}"
        relu, tuned = ([1 - one["test"][name]["both"] for one in at] for name in ("relu", "search"))
        change = changes[f"attacks up to {radius}"] = section.fewer(tuned, relu)
        searched = ("search", "beta searched", section.gain(change), [one["chosen"] for one in at])
        for name, label, against, betas in (("relu", "ReLU", section.NONE, [1.0]), searched):
            cells = [section.percent([one["test"][name][kind] for one in at]) for kind in KINDS]
            rows.append((f"{label}, up to {radius}", *cells, against, Cell(section.chosen(betas), "quiet")))
        tested = [one["test"]["search"] for one in at]
        masked = 100 * mean(accuracy["white"] - accuracy["carried"] for accuracy in tested)
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
        "A thin line is a repetition, the thick one their mean. Where the attack made for the ReLU network does more "
        "harm than the attack on the network itself, gradients are masked and robustness is an illusion."
    )
    return section.over_beta("robustness", "Under attack", caption, panels, "accuracy (%)", list(labels.values()))
