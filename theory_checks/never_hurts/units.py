"""One cell and seed of the study: all arms trained on the same draw."""

import time
from pathlib import Path

import torch

from steering.auto.estimate import base_of, estimate
from steering.references.store import ReferenceLosses
from steering.runs.folder import write_part
from steering.settings import Strict
from steering.theory_checks.never_hurts.plan import Plan, problem_of
from steering.training.loop import evaluate
from steering.training.step import Training


class Outcome(Strict):
    """What the arms of one cell and seed came to."""

    errors: dict[str, float]  # test errors by arm, balanced where the classes are imbalanced
    sentences: dict[str, str]  # what was estimated, of the arms with base weights
    seconds: float  # processor time


class Unit(Strict):
    """What is trained in one go and written down as one file."""

    cell: str
    seed: int

    @property
    def file(self) -> str:
        return f"parts/{self.cell}/seed{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    def make(self, plan: Plan, folder: Path) -> Outcome:
        """Trains and writes the file, whole or not at all."""
        torch.set_num_threads(1)
        outcome = train(plan, self.cell, self.seed)
        write_part(folder / self.file, outcome)
        return outcome


def units(plan: Plan) -> list[Unit]:
    """All of them, one seed after the other, so that early seeds are whole."""
    return [Unit(cell=cell, seed=seed) for seed in plan.seed_numbers() for cell in plan.cells]


def train(plan: Plan, name: str, seed: int) -> Outcome:
    """Trains every arm of a cell on one draw, from the same initial weights and in the same order of data."""
    began = time.process_time()
    cell = plan.cells[name]
    recipe, task = plan.recipe_of(cell), problem_of(cell).seeded(seed)
    reference = ReferenceLosses(task)
    errors, sentences = {}, {}
    for arm_name, arm in recipe.arms.items():
        base, settings = None, base_of(arm)
        if settings is not None:
            fitted = estimate(task, reference, recipe=recipe, seed=seed, folds=settings.folds)
            base, sentences[arm_name] = fitted.weights, fitted.sentence
        training = Training(task, arm, recipe, reference=reference, seed=seed, base=base)
        for _ in range(recipe.steps):
            training.step()
        errors[arm_name] = evaluate(task, training.result)["error"]
    return Outcome(errors=errors, sentences=sentences, seconds=time.process_time() - began)
