"""The contract that every task keeps, and that the contract bites."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steering import Batch, Losses, registry
from steering.clip.task import Clip
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Recipe
from steering.tasks.blobs import Blobs
from steering.tasks.diabetes import Diabetes
from steering.tasks.digits import Digits
from steering.testing import check_task
from steering.training.loader import ShuffledLoader
from steering.training.step import Training

# A repr holds all options; a task that takes longer than a second gets pytest.mark.slow.
TASKS = [
    Digits(),
    Digits(samples=160, noise=1.0, reference_samples=60, seed=9),
    Blobs(),
    Blobs(samples=100, noise=0.0),
    Diabetes(),
    Diabetes(huber=None, noise=1.0, samples=125),
    pytest.param(Clip(), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_task_keeps_the_contract(task):
    check_task(task)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_task_is_a_value_whose_options_can_be_typed(task):
    """Equal to its own constructor call, as the command line reads it."""
    name, options = repr(task).split("(", 1)
    assert registry.build("tasks", f"{name.lower()}({options}") == task


def test_the_check_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    check_task(Blobs())
    assert torch.equal(torch.get_rng_state(), before)


class Tokens(Blobs):
    """Losses of up to three tokens a sample, padded, with a fact of each of them."""

    packed = False

    def load(self, ids, _):
        batch = super().load(ids, _)
        mask = torch.arange(3) <= ids[:, None] % 4 - 1  # every fourth sample has none
        fields = {**batch.fields, "mask": mask}
        if not self.packed:
            return replace(batch, fields=fields, facts={"second": (torch.arange(3) == 1).expand(len(ids), 3)})
        rows, columns = mask.nonzero().unbind(1)
        fields = {name: value[rows] for name, value in batch.fields.items()} | {"column": columns}
        return Batch(ids, fields, {"second": columns == 1}, rows)

    def losses(self, model, batch):
        values = cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        if self.packed:
            return Losses(values * (1 + batch["column"]), rows=batch.rows, groups=batch.ids % 2)
        return Losses(values[:, None] * torch.arange(1, 4), batch["mask"])


class Packed(Tokens):
    """The same tokens, one behind the other."""

    packed = True


@pytest.mark.parametrize("task", [Tokens, Packed])
def test_tasks_of_tokens_keep_the_contract_and_are_trained_whole_and_in_parts(task):
    check_task(task())
    recipe = task().recipe.model_copy(update={"steps": 1, "batch": 8})
    arm, records = recipe.arms["drrho_kl"], []
    for size in (None, 3):
        settings = recipe.model_copy(update={"micro_batch": size})
        training = Training(task(), arm, settings, reference=ReferenceLosses(task()), seed=0)
        records.append(training.step())

    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-6)
    assert 0.1 < records[0]["facts"]["second"] == pytest.approx(records[1]["facts"]["second"], rel=1e-6)


def test_packed_tokens_are_trained_on_as_padded_ones():
    records = []
    for task in (Tokens(), Packed()):
        recipe = task.recipe.model_copy(update={"steps": 1, "batch": 8})
        training = Training(task, recipe.arms["drrho_kl"], recipe, reference=ReferenceLosses(task), seed=0)
        records.append(training.step())
    for name in ("loss", "effective", "variance_ratio", "facts"):
        assert records[0][name] == pytest.approx(records[1][name], rel=1e-5)


class Resumes(ShuffledLoader):
    """Starts every time at the beginning."""

    def load_state_dict(self, state):
        self.position = 0


class Opaque(ShuffledLoader):
    def state_dict(self):
        return super().state_dict() | {"random": random.Random(0)}


class Plain(Recipe):
    def __init__(self, **changes):
        super().__init__(**({"steps": 1, "batch": 10, "arms": {"erm": Arm()}, "baseline": "erm"} | changes))


class UnknownBaseline(Blobs):
    recipe = Plain(baseline="none")


class UnknownRule(Blobs):
    recipe = Plain(arms={"erm": Arm(rule="cwar(alpha=0.5)")})


class TooManyCandidates(Blobs):
    recipe = Plain(arms={"erm": Arm(selector="top_k(keep=0.01)")})


class IdsOutside(Blobs):
    """Numbers its samples as a larger data set does."""

    def load(self, ids, _):
        return replace(super().load(ids, _), ids=ids + 1000)


class OneOrder(Blobs):
    def stream(self, batch, *, seed):
        return super().stream(batch, seed=0)


class AnyOrder(Blobs):
    def stream(self, batch, *, seed):
        return super().stream(batch, seed=random.Random().getrandbits(40))


class StartsAgain(Blobs):
    def stream(self, batch, *, seed):
        return Resumes(self.load, size=self.size, batch=batch, seed=seed)


class OpaqueState(Blobs):
    def stream(self, batch, *, seed):
        return Opaque(self.load, size=self.size, batch=batch, seed=seed)


class TwiceInABatch(Blobs):
    def load(self, ids, _):
        return super().load(ids % 5, _)


class ShortFields(Blobs):
    def load(self, ids, _):
        batch = super().load(ids, _)
        return replace(batch, facts={"wrong": batch.facts["wrong"][1:]})


class OneTarget(Blobs):
    def target(self):
        torch.manual_seed(0)
        return super().target()


class AnyTarget(Blobs):
    def target(self):
        model = super().target()
        next(model.parameters()).data += random.random()
        return model


class AnyReference(Blobs):
    def reference(self):
        model = super().reference()
        next(model.parameters()).data += random.Random().random()
        return model


class ReferenceInTraining(Blobs):
    def reference(self):
        return nn.Sequential(super().reference()).train()


class ReferenceDraws(Blobs):
    def reference(self):
        nn.Linear(2, 2)
        return super().reference()


class MeanLoss(Blobs):
    def losses(self, model, batch):
        return Losses(cross_entropy(model(batch["x"]), batch["y"]))


class FactsOfNothing(Blobs):
    def load(self, ids, _):
        return replace(super().load(ids, _), facts={"wrong": torch.zeros(len(ids), 7)})


class RowsOutside(Blobs):
    def losses(self, model, batch):
        return super().losses(model, batch)._replace(rows=batch.ids)


class NamedGroups(Blobs):
    def losses(self, model, batch):
        return super().losses(model, batch)._replace(groups=batch["y"].float())


class Explodes(Blobs):
    """Losses that are finite, but not their gradient."""

    def losses(self, model, batch):
        values: Any = super().losses(model, batch).values
        return Losses(values + (values * 0).sqrt())


class Detached(Blobs):
    def losses(self, model, batch):
        logits = model(batch["x"]).detach() + 0 * next(model.parameters()).sum()
        return Losses(cross_entropy(logits, batch["y"], reduction="none"))


class Overwrites(Blobs):
    def losses(self, model, batch):
        batch["x"].sub_(1)
        return super().losses(model, batch)


class ByCompany(Blobs):
    """Normalises over the batch."""

    def losses(self, model, batch):
        logits = model(batch["x"])
        return Losses(cross_entropy(logits - logits.mean(0), batch["y"], reduction="none"))


class UndeclaredMetric(Blobs):
    def evaluate(self, model):
        return super().evaluate(model) | {"loss": 0.0}


class TensorMetric(Blobs):
    def evaluate(self, model) -> Any:
        return {"error": torch.tensor(0.5)}


class InPercent(Blobs):
    def evaluate(self, model):
        return {"error": 100 * super().evaluate(model)["error"]}


class NotANumber(Blobs):
    def evaluate(self, model):
        return {"error": float("nan")}


class EvaluatesASample(Blobs):
    def evaluate(self, model):
        return {"error": float(torch.rand(()))}


@dataclass(frozen=True)
class AnotherDraw(Blobs):
    def seeded(self, seed):
        return replace(self, seed=random.Random().getrandbits(40))


BROKEN = {
    UnknownBaseline: r"baseline is one of its arms \['erm'\], got none",
    UnknownRule: "arm erm can be built, got: no rule is named 'cwar'",
    TooManyCandidates: "finds its candidates among 200 samples, got 1000",
    IdsOutside: "ids run from 0 to 199",
    OneOrder: "another seed gives another order",
    AnyOrder: "the same seed gives the same batches",
    StartsAgain: "a resumed stream goes on where it was",
    OpaqueState: "a stream's state is of plain types",
    TwiceInABatch: "no id is twice in a batch",
    ShortFields: r"wrong has a row for each of 8 samples, got \[7\]",
    OneTarget: "first weights depend on torch's global generator, got the same",
    AnyTarget: "first weights depend on torch's global generator alone",
    AnyReference: "the reference is the same at every call",
    ReferenceInTraining: "the reference is in evaluation mode, got training mode of",
    ReferenceDraws: r"reference leaves the global generators alone, got another state of \['torch'\]",
    MeanLoss: r"losses of the target have a row for each of 8 samples, got \[\]",
    FactsOfNothing: r"arm erm can be trained, got: the fact 'wrong' is \[8\], or shaped like the losses \[8\]",
    RowsOutside: r"rows of the target are indices of samples, \[entries\] int64 from 0 to 7",
    NamedGroups: r"groups of the target are \[8\] int64, got \[8\] torch.float32",
    Explodes: "a step of arm erm leaves finite weights",
    Detached: "reach its weights with a gradient",
    Overwrites: "losses do not write into the batch",
    ByCompany: "the same loss .* whatever else is in the batch",
    UndeclaredMetric: r"returns the metrics declared, \['error'\], got \['error', 'loss'\]",
    TensorMetric: "error of the target is a finite float, got tensor",
    InPercent: "error of the target is a share from 0 to 1",
    NotANumber: "error of the target is a finite float, got nan",
    EvaluatesASample: "evaluate leaves the global generators alone",
    AnotherDraw: "the same repetition has the same data",
}


@pytest.mark.parametrize("task", BROKEN, ids=lambda task: task.__name__)
def test_a_broken_task_is_told_which_promise_it_breaks(task):
    with pytest.raises(AssertionError, match=BROKEN[task]) as caught:
        check_task(task())
    assert task.__name__ in str(caught.value), "the message names the task"


def test_a_task_without_all_its_parts_is_told_what_it_misses():
    class Half:
        size = rows = 1

    with pytest.raises(AssertionError, match="a task needs recipe, metrics, seeded, target, reference, stream"):
        check_task(Half())  # type: ignore[arg-type]
