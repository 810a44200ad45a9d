"""One training of a curve: a method, a number of samples and a seed, and what came of it."""

import json
from functools import lru_cache
from pathlib import Path

import torch

from steering import registry
from steering.runs.folder import write_part
from steering.settings import Strict
from steering.task import Task
from steering.theory_checks.curve.plan import REFERENCE, Cost, Method, Plan, error_of
from steering.theory_checks.training_sets import CountedReference, ReferenceData, filtered, first, joined, sample_pool
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
    scanned, arm = subset.size if method.data == "filtered" else 0, method.arm
    selects = arm.selector is not None and registry.build("selectors", arm.selector).uses_reference
    uses_reference = arm.subtract or arm.distill or selects or method.data != "train"
    own = len(subset.reference_batch()) if uses_reference and isinstance(subset, ReferenceData) else 0
    candidates = candidates_needed(arm, training.recipe, training.task.size) if arm.selector else 0
    every, steps = plan.recipe.evaluate_every, plan.recipe.steps
    path: list[Point] = []
    while training.done < steps:
        figures = training.step()
        if training.done == steps or (every and training.done % every == 0):
            referred, scored = scanned + reference.count, training.done * candidates
            cost = Cost(trained=figures["samples"], scored=scored, referred=referred, reference_samples=own)
            error = error_of(evaluate(training.task, training.result), training.task)
            path.append(Point(step=training.done, cost=cost, error=error))
    return Outcome(error=path[-1].error, path=tuple(path), cost=path[-1].cost)


def begin(plan: Plan, method: Method, subset: Task, seed: int) -> tuple[Training, CountedReference]:
    """A method before its first step, on what it takes of a subset, in batches no larger than that."""
    task = joined(subset) if method.data == "joined" else subset
    if method.data == "filtered":
        task = filtered(subset, method.keep)
    chance = generator(seed, "shuffled reference")
    permutation = torch.randperm(task.size, generator=chance) if method.shuffled else None
    reference, decay = CountedReference(task, permutation), method.weight_decay
    keep = registry.build("selectors", method.arm.selector).keep if method.arm.selector else 1
    batch = max(1, min(plan.recipe.batch, int(task.size * keep)))
    changes = {"batch": batch, "weight_decay": plan.recipe.weight_decay if decay is None else decay}
    recipe = plan.recipe.model_copy(update=changes)
    return Training(task, method.arm, recipe, reference=reference, seed=seed), reference
