"""One training of a curve: a method, a number of samples and a seed, and what came of it."""

import json
from functools import lru_cache
from pathlib import Path

import torch

from steering import registry
from steering.runs.folder import read_part, write_part
from steering.settings import Strict
from steering.task import Task
from steering.theory_checks.curve.plan import REFERENCE, Cost, Method, Plan, error_of
from steering.theory_checks.curve.samples import CountedReference, ReferenceData, filtered, first, joined, sample_pool
from steering.training.loop import evaluate
from steering.training.seeds import generator
from steering.training.step import Training, candidates_needed


class Point(Strict):
    """A test error on the way, after so many gradient steps, with the cost of all that led there."""

    step: int
    cost: Cost
    error: float


class Outcome(Strict):
    """What one training came to."""

    error: float  # on the test set at the end; of the reference, which is not trained here, its reference_samples
    path: tuple[Point, ...] = ()  # at every evaluation of the recipe and at the end
    cost: Cost = Cost()  # of all of it

    @property
    def lowest(self) -> float:
        """The smallest error on the way: what stopping at the best step by the test set would give."""
        return min([self.error, *(point.error for point in self.path)])


class Unit(Strict):
    """What is trained in one go and written down as one file."""

    name: str  # of the method, or ``reference``
    method: Method | None  # None for the reference
    size: int  # training samples; 0 for the reference, which does not depend on them
    seed: int  # of the draw, the initial weights and the order
    file: str  # in the folder of the curve

    def __str__(self) -> str:
        return f"{self.name}, n = {self.size}, seed {self.seed}"

    def read(self, folder: Path) -> Outcome | None:
        """What the file says, if there is one.

        Raises:
            UserError: the file is damaged.
        """
        return read_part(folder / self.file, Outcome)

    def make(self, plan: Plan, folder: Path) -> Outcome:
        """Trains and writes the file, whole or not at all; the same unit gives the same outcome in any process."""
        torch.set_num_threads(1)
        pool = drawn(plan.task, json.dumps(plan.options), self.seed)
        if self.method is None:
            outcome = Outcome(error=error_of(evaluate(pool, pool.reference()), pool))
        else:
            outcome = train(plan, self.method, first(pool, self.size), self.seed)
        write_part(folder / self.file, outcome)
        return outcome


def units(plan: Plan) -> list[Unit]:
    """All that a plan without tuning trains; one seed after the other, so that early ones are whole."""
    made = []
    for seed in plan.seed_numbers():
        made.append(Unit(name=REFERENCE, method=None, size=0, seed=seed, file=f"parts/seed{seed}/reference.json"))
        made += [unit(name, method, size, seed) for size in plan.sizes for name, method in plan.methods.items()]
    return made


def unit(name: str, method: Method, size: int, seed: int, folder: str = "parts") -> Unit:
    return Unit(name=name, method=method, size=size, seed=seed, file=f"{folder}/seed{seed}/n{size}/{name}.json")


@lru_cache(maxsize=2)
def drawn(task: str, options: str, seed: int) -> Task:
    """The pool of one seed, with its reference; kept for the units that follow."""
    return sample_pool(registry.build("tasks", task, json.loads(options)).seeded(seed))


def train(plan: Plan, method: Method, subset: Task, seed: int) -> Outcome:
    """Trains one method on a subset."""
    training, reference = begin(plan, method, subset, seed)
    scanned = subset.size if method.data == "filtered" else 0
    referred = subset if _needs_reference(method) else None
    reference_samples = len(referred.reference_batch()) if isinstance(referred, ReferenceData) else 0
    candidates = candidates_needed(method.arm, training.recipe, training.task.size) if method.arm.selector else 0
    every, steps = plan.recipe.evaluate_every, plan.recipe.steps
    path: list[Point] = []
    while training.done < steps:
        figures = training.step()
        if training.done == steps or (every and training.done % every == 0):
            cost = Cost(
                trained=figures["samples"],
                scored=training.done * candidates,
                referred=scanned + reference.count,
                reference_samples=reference_samples,
            )
            error = error_of(evaluate(training.task, training.result), training.task)
            path.append(Point(step=training.done, cost=cost, error=error))
    return Outcome(error=path[-1].error, path=tuple(path), cost=path[-1].cost)


def begin(plan: Plan, method: Method, subset: Task, seed: int) -> tuple[Training, CountedReference]:
    """A method before its first step, on what it takes of a subset, in batches no larger than that."""
    task = subset
    if method.data == "filtered":
        task = filtered(subset, method.keep)
    elif method.data == "joined":
        task = joined(subset)
    permutation = (
        torch.randperm(task.size, generator=generator(seed, "shuffled reference")) if method.shuffled else None
    )
    keep = registry.build("selectors", method.arm.selector).keep if method.arm.selector else 1
    changes: dict[str, float] = {"batch": max(1, min(plan.recipe.batch, int(task.size * keep)))}
    if method.weight_decay is not None:
        changes["weight_decay"] = method.weight_decay
    reference = CountedReference(task, permutation)
    recipe = plan.recipe.model_copy(update=changes)
    return Training(task, method.arm, recipe, reference=reference, seed=seed), reference


def _needs_reference(method: Method) -> bool:
    """Whether a method needs the reference or its samples at all."""
    arm = method.arm
    selects = arm.selector is not None and registry.build("selectors", arm.selector).uses_reference
    return bool(arm.subtract or arm.distill or selects or method.data != "train")
