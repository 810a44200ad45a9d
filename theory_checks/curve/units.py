"""One training of a curve: a method, a number of samples and a seed, and what came of it."""

import json
from functools import lru_cache
from pathlib import Path

import torch

from steering import atomic_files, registry
from steering.errors import UserError
from steering.settings import Strict
from steering.theory_checks.curve.plan import REFERENCE, Cost, Method, Plan, error_of
from steering.theory_checks.curve.samples import Asked, Held, ReferenceData, filtered, first, held, joined
from steering.training.loop import Training, evaluate
from steering.training.seeds import generator


class Point(Strict):
    """A test error on the way.

    Attributes:
        step: gradient steps taken.
        cost: of all that led here.
        error: on the test set.
    """

    step: int
    cost: Cost
    error: float


class Outcome(Strict):
    """What one training came to.

    Attributes:
        error: on the test set at the end; of the reference, which is not trained here, its own.
        path: at every evaluation of the recipe and at the end.
        cost: of all of it.
    """

    error: float
    path: tuple[Point, ...] = ()
    cost: Cost = Cost()

    @property
    def lowest(self) -> float:
        """The smallest error on the way: what stopping at the best step by the test set would give."""
        return min([self.error, *(point.error for point in self.path)])


class Unit(Strict):
    """What is trained in one go and written down as one file.

    Attributes:
        name: of the method, or ``reference``.
        method: None for the reference.
        size: training samples; 0 for the reference, which does not depend on them.
        seed: of the draw, the initial weights and the order.
        place: of its file in the folder of the curve.
    """

    name: str
    method: Method | None
    size: int
    seed: int
    place: str

    def read(self, folder: Path) -> Outcome | None:
        """What the file says, if there is one.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / self.place
        if not path.exists():
            return None
        try:
            return Outcome.model_validate_json(path.read_text())
        except ValueError:
            raise UserError(f"{path} is damaged: delete it, and the curve trains that part again") from None

    def make(self, plan: Plan, folder: Path) -> Outcome:
        """Trains and writes the file, whole or not at all."""
        torch.set_num_threads(1)
        outcome = perform(plan, self)
        atomic_files.write(folder / self.place, outcome.model_dump_json(indent=1) + "\n")
        return outcome


def units(plan: Plan) -> list[Unit]:
    """All that a plan without tuning trains; one seed after the other, so that early ones are whole."""
    found = []
    for seed in plan.seed_numbers():
        found.append(Unit(name=REFERENCE, method=None, size=0, seed=seed, place=f"parts/seed{seed}/reference.json"))
        for size in plan.sizes:
            found += [unit(name, method, size, seed) for name, method in plan.methods.items()]
    return found


def unit(name: str, method: Method, size: int, seed: int, below: str = "parts") -> Unit:
    return Unit(name=name, method=method, size=size, seed=seed, place=f"{below}/seed{seed}/n{size}/{name}.json")


def perform(plan: Plan, unit: Unit) -> Outcome:
    """Trains one unit; the same unit gives the same outcome in any process."""
    pool = drawn(plan.task, json.dumps(plan.options), unit.seed)
    if unit.method is None:
        return Outcome(error=error_of(evaluate(pool, pool.reference()), pool))
    return train(plan, unit.method, first(pool, unit.size), unit.seed)


@lru_cache(maxsize=2)
def drawn(task: str, options: str, seed: int) -> Held:
    """The pool of one seed, with its reference; kept for the units that follow."""
    return held(registry.build("tasks", task, json.loads(options)).seeded(seed))


def train(plan: Plan, method: Method, subset: Held, seed: int) -> Outcome:
    """Trains one method on a subset."""
    task = altered(method, subset)
    own = len(subset.reference_batch()) if _knows(method) and isinstance(subset.task, ReferenceData) else 0
    before = Cost(referred=subset.size if method.data == "filtered" else 0, reference_samples=own)
    places = torch.randperm(task.size, generator=generator(seed, "shuffled reference")) if method.shuffled else None
    reference = Asked(task, places)
    training = Training(task, method.arm, settled(plan, method, task.size), reference=reference, seed=seed)
    path: list[Point] = []
    every, steps = plan.recipe.evaluate_every, plan.recipe.steps
    while training.done < steps:
        training.step()
        if training.done == steps or (every and training.done % every == 0):
            cost = _cost(training, reference, before)
            path.append(Point(step=training.done, cost=cost, error=error_of(training.evaluate(), task)))
    return Outcome(error=path[-1].error, path=tuple(path), cost=path[-1].cost)


def altered(method: Method, subset: Held) -> Held:
    """What a method is trained on, of a subset."""
    if method.data == "filtered":
        return filtered(subset, method.keep)
    return joined(subset) if method.data == "joined" else subset


def settled(plan: Plan, method: Method, size: int):
    """The recipe of one training: a batch no larger than the training set, the method's own weight decay."""
    keep = registry.build("selectors", method.arm.selector).keep if method.arm.selector else 1
    changes: dict[str, float] = {"batch": max(1, min(plan.recipe.batch, int(size * keep)))}
    if method.weight_decay is not None:
        changes["weight_decay"] = method.weight_decay
    return plan.recipe.model_copy(update=changes)


def _knows(method: Method) -> bool:
    """Whether a method needs the reference at all."""
    selector = registry.build("selectors", method.arm.selector) if method.arm.selector else None
    looks = method.arm.subtract or method.arm.distill or (selector and selector.uses_reference)
    return bool(looks) or method.data != "train"


def _cost(training: Training, reference: Asked, before: Cost) -> Cost:
    tally = training.tally
    scored = tally.candidates if training.selector is not None else 0
    changes = {"trained": tally.samples, "scored": scored, "referred": before.referred + reference.number}
    return before.model_copy(update=changes)
