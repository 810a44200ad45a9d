"""A curvature-tuned copy of a model as the reference of a DRRho run."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import validate_call
from torch import nn
from torch.nn.functional import cross_entropy

from steering import registry
from steering.curvature import replace_relus
from steering.settings import Arm
from steering.task import Task, exchange
from steering.tasks.in_memory import corrupted
from steering.theory_checks.curvature import section, small
from steering.training.seeds import derive, generator

NOISE = 0.4  # share of wrong labels among the target's training samples and the held-out ones
TRAINING, REFERENCE, HELD_OUT = 400, 150, 300
STEERED = Arm(rule="kl(temperature=0.5)", reference_scale=1.0)


@validate_call  # the options come from the command line
def tuned_reference(task: Any, beta: float = 0.9, coefficient: float = 0.5) -> Task:
    """A task with every ReLU of its reference replaced by a curvature unit.

    Args:
        task: as ``steer run`` takes it, or the task itself; its reference must have a ReLU.
        beta: of every unit; 1 is the reference as it was.
        coefficient: of every unit.
    """
    original: Task = registry.build("tasks", task) if isinstance(task, str) else task

    def reference() -> nn.Module:
        return replace_relus(original.reference(), beta, coefficient).model.eval().requires_grad_(False)

    def seeded(seed: int) -> Task:
        return tuned_reference(original.seeded(seed), beta, coefficient)

    return exchange(original, reference=reference, seeded=seeded)


def measure(seed: int, betas: Sequence[float], steps: int = 200) -> dict[str, Any]:
    """One repetition on noisy digits: DRRho with one reference at several betas. Nothing is chosen.

    Returns:
        ``plain``: test error without a reference; for every beta the test errors of the reference and of the target
        that it steered, and the variance ratio on held-out noisy samples, with the loss of the target trained plainly.
    """
    chance = generator(seed, "curvature", "bridge")
    training, clean, held_out, test = small.random_parts(small.digits(), [TRAINING, REFERENCE, HELD_OUT], chance)
    training, held_out = (corrupted(*part[:2], NOISE, 10, chance) for part in (training, held_out))
    settings = small.recipe(steps, 160, 1e-2, weight_decay=0.1)
    target, teaching = partial(small.network, 64, 64, 1, 10), small.recipe(200, 50, 1e-2, weight_decay=0.1)
    reference = small.fit(target, clean, teaching, derive(seed, "reference")).requires_grad_(False)
    task = small.classification(target, training, held_out, test, settings, lambda: reference)
    plain = small.trained(task, settings, seed)

    def losses(model: nn.Module) -> np.ndarray:
        outputs = small.outputs(model, held_out.x).double()
        return cross_entropy(outputs, held_out.y, reduction="none").numpy()

    result: dict[str, Any] = {"betas": small.with_relu(betas), "ratio": [], "reference": [], "steered": []}
    for beta in result["betas"]:
        tuned = tuned_reference(task, beta)
        result["reference"].append(small.error(tuned.reference(), test))
        result["ratio"].append(variance_ratio(losses(plain), losses(tuned.reference())))
        result["steered"].append(small.error(small.trained(tuned, settings, seed, STEERED), test))
    return result | {"plain": small.error(plain, test), "sizes": [TRAINING, REFERENCE, HELD_OUT, len(test.y)]}


def variance_ratio(losses: np.ndarray, reference_losses: np.ndarray) -> float:
    """Var(l - l_ref) / Var(l) over samples: below 1 the loss varies less (Wei et al. 2025, sec. 4)."""
    return float(np.var(losses - reference_losses) / np.var(losses))


def summarise(results: section.Results) -> section.Section:
    """A tuned network as the reference."""
    betas, plain = results[0]["betas"], [result["plain"] for result in results]
    by_beta = [zip(*(result[key] for result in results), strict=True) for key in ("reference", "ratio", "steered")]
    rows: list = [("no reference", section.NONE, section.NONE, section.percent(plain), section.NONE, section.NONE)]
    decided: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    relu = [result["steered"][0] for result in results]
    for beta, reference, ratio, steered in zip(betas, *by_beta, strict=True):
        change = section.fewer(steered, relu)
        decided[change.verdict].append(f"{beta:g} ({section.signed(change)} points)")
        errors = section.percent(reference), section.spread(ratio, 2), section.percent(steered)
        gains = section.gain(section.fewer(steered, plain)), section.gain(None if beta == 1 else change)
        rows.append((f"beta = {beta:g}{' (ReLU)' if beta == 1 else ''}", *errors, *gains))
    listed = [f"{verdict} at beta {', '.join(decided[verdict])}" for verdict in ("better", "worse") if decided[verdict]]
    finding = "; ".join(listed) or "no value of beta made a decided difference"
    columns = "reference|its own test error (%)|variance ratio|target's test error (%)|fewer errors than plain|"
    note = (
        "Variance ratio: Var(l - l_ref) / Var(l) on held-out samples with noisy labels, l of the target trained "
        "plainly. Nothing is chosen: every beta is shown."
    )
    title = "A tuned network as the reference of DRRho"
    return section.Section(
        findings=[f"As a reference of DRRho, the tuned network against itself with ReLU: {finding}."],
        grids=[section.grid(title, columns + "fewer than beta = 1", rows, results, note)],
    )
