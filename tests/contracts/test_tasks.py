"""The contract that every task keeps, and that the contract bites."""

import random
from dataclasses import replace
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
def test_every_task_keeps_the_contract_and_is_a_value_whose_options_can_be_typed(task):
    """Equal to its own constructor call, as the command line reads it."""
    check_task(task)
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


def test_tasks_of_tokens_keep_the_contract_and_are_trained_padded_or_packed_whole_or_in_parts():
    records = []
    for task in (Tokens(), Packed()):
        check_task(task)
        for size in (None, 3):
            settings = task.recipe.model_copy(update={"steps": 1, "batch": 8, "micro_batch": size})
            arm, reference = settings.arms["drrho_kl"], ReferenceLosses(task)
            records.append(Training(task, arm, settings, reference=reference, seed=0).step())
    assert records[0]["facts"]["second"] > 0.1
    for record in records[1:]:
        for name in ("loss", "effective", "variance_ratio", "facts"):
            assert records[0][name] == pytest.approx(record[name], rel=1e-5)


class Resumes(ShuffledLoader):
    """Starts every time at the beginning."""

    def load_state_dict(self, state):
        self.position = 0


class Opaque(ShuffledLoader):
    def state_dict(self):
        return super().state_dict() | {"random": random.Random(0)}


def recipe(**changes):
    return {"recipe": Recipe(**({"steps": 1, "batch": 10, "arms": {"erm": Arm()}, "baseline": "erm"} | changes))}


def loading(change):
    """A task whose batches are changed."""
    return {"load": lambda self, ids, _: change(Blobs.load(self, ids, _))}


def streaming(loader, seeded=lambda seed: seed):
    def stream(self, batch, *, seed):
        return loader(self.load, size=self.size, batch=batch, seed=seeded(seed))

    return {"stream": stream}


def losing(change):
    """A task whose losses are those of changed outputs ``[n, classes]``."""

    def losses(self, model, batch):
        return Losses(cross_entropy(change(model(batch["x"]), model), batch["y"], reduction="none"))

    return {"losses": losses}


def losses_with(change):
    return {"losses": lambda self, model, batch: change(Blobs.losses(self, model, batch), batch)}


def shaken(method):
    """A model whose first weights are others at every call."""

    def make(self):
        model = getattr(Blobs, method)(self)
        next(model.parameters()).data += random.Random().random()
        return model

    return {method: make}


def after(action, method):
    """A method before which something is done to the global generators."""
    return {method: lambda self: (action(), getattr(Blobs, method)(self))[1]}


def evaluating(metrics):
    return {"evaluate": lambda self, model: metrics(Blobs.evaluate(self, model))}


def overwrites(self, model, batch):
    batch["x"].sub_(1)
    return Blobs.losses(self, model, batch)


# The promise that the users of a task are told of, and what breaks it in one that keeps all others.
BROKEN = {
    r"baseline is one of its arms \['erm'\], got none": recipe(baseline="none"),
    "arm erm can be built, got: no rule is named 'cwar'": recipe(arms={"erm": Arm(rule="cwar(alpha=0.5)")}),
    "finds its candidates among 200 samples, got 1000": recipe(arms={"erm": Arm(selector="top_k(keep=0.01)")}),
    "ids run from 0 to 199": loading(lambda batch: replace(batch, ids=batch.ids + 1000)),
    "another seed gives another order": streaming(ShuffledLoader, lambda _: 0),
    "the same seed gives the same batches": streaming(ShuffledLoader, lambda _: random.Random().getrandbits(40)),
    "a resumed stream goes on where it was": streaming(Resumes),
    "a stream's state is of plain types": streaming(Opaque),
    "no id is twice in a batch": {"load": lambda self, ids, _: Blobs.load(self, ids % 5, _)},
    r"wrong has a row for each of 8 samples, got \[7\]": loading(
        lambda batch: replace(batch, facts={"wrong": batch.facts["wrong"][1:]})
    ),
    "first weights depend on torch's global generator, got the same": after(lambda: torch.manual_seed(0), "target"),
    "first weights depend on torch's global generator alone": shaken("target"),
    "the reference is the same at every call": shaken("reference"),
    "the reference is in evaluation mode, got training mode of": {
        "reference": lambda self: nn.Sequential(Blobs.reference(self)).train()
    },
    r"reference leaves the global generators alone, got another state of \['torch'\]": after(
        lambda: nn.Linear(2, 2), "reference"
    ),
    r"losses of the target have a row for each of 8 samples, got \[\]": losses_with(
        lambda losses, _: Losses(losses.values.mean())
    ),
    r"arm erm can be trained, got: the fact 'wrong' is \[8\], or shaped like the losses \[8\]": loading(
        lambda batch: replace(batch, facts={"wrong": torch.zeros(len(batch.ids), 7)})
    ),
    r"rows of the target are indices of samples, \[entries\] int64 from 0 to 7": losses_with(
        lambda losses, batch: losses._replace(rows=batch.ids)
    ),
    r"groups of the target are \[8\] int64, got \[8\] torch.float32": losses_with(
        lambda losses, batch: losses._replace(groups=batch["y"].float())
    ),
    # Losses that are finite, but not their gradient.
    "a step of arm erm leaves finite weights": losses_with(
        lambda losses, _: Losses(losses.values + (losses.values * 0).sqrt())
    ),
    "reach its weights with a gradient": losing(lambda x, model: x.detach() + 0 * next(model.parameters()).sum()),
    "losses do not write into the batch": {"losses": overwrites},
    "the same loss .* whatever else is in the batch": losing(lambda outputs, _: outputs - outputs.mean(0)),
    r"returns the metrics declared, \['error'\], got \['error', 'loss'\]": evaluating(lambda it: it | {"loss": 0.0}),
    "error of the target is a finite float, got tensor": evaluating(lambda _: {"error": torch.tensor(0.5)}),
    "error of the target is a share from 0 to 1": evaluating(lambda it: {"error": 100 * it["error"]}),
    "error of the target is a finite float, got nan": evaluating(lambda _: {"error": float("nan")}),
    "evaluate leaves the global generators alone": evaluating(lambda _: {"error": float(torch.rand(()))}),
    "the same repetition has the same data": {
        "seeded": lambda self, _: replace(self, seed=random.Random().getrandbits(40))
    },
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_broken_task_is_told_which_promise_it_breaks(promise):
    with pytest.raises(AssertionError, match=promise) as caught:
        check_task(type("Faulty", (Blobs,), BROKEN[promise])())
    assert "Faulty" in str(caught.value), "the message names the task"


def test_a_task_without_all_its_parts_is_told_what_it_misses():
    half: Any = type("Half", (), {"size": 1, "rows": 1})()
    with pytest.raises(AssertionError, match="a task needs recipe, metrics, seeded, target, reference, stream"):
        check_task(half)
