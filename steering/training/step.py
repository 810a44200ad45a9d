"""One arm in training: what a gradient step does, and all that changes from one to the next."""

import math
import time
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steering import registry
from steering.contrastive.pairs import Pairs, is_pairs
from steering.distillation import distil
from steering.distributed import all_gather, all_reduce_sum, fail_on_all_ranks, rank, world_size
from steering.dual_memory import DualMemory
from steering.engine import Steerer
from steering.errors import RunError, UserError
from steering.groups import GroupWeights
from steering.loss_rows import Average
from steering.references.answers import same_entries
from steering.references.store import ReferenceLosses
from steering.rules.rule import Tempered
from steering.selectors.selector import Selector
from steering.settings import Arm, Recipe
from steering.steered import Steered
from steering.task import Batch, Losses, Task
from steering.training import checkpoint, parallel, seeds
from steering.training.counters import Counters
from steering.training.forward import Forward, score
from steering.training.schedules import GammaSchedule, learning_rate
from steering.training.state_check import identity

Record = dict[str, Any]


class Training:
    """One arm in training: all that changes from step to step, and how to save it.

    Arms with the same seed start from the same weights and see the same order of data.

    Args:
        task: drawn for this repetition already (``task.seeded(seed)``).
        arm: the method.
        recipe: settings that every arm shares.
        reference: the reference's losses; only computed when the arm uses them.
        base: base weights by id, ``[size]``, of an arm that has some.
        seed: of initial weights, data order, views and selection, each a stream of its own.
        device: where the target trains.

    Attributes:
        done: gradient steps taken.
        counters: what they were taken on.
    """

    def __init__(
        self,
        task: Task,
        arm: Arm,
        recipe: Recipe,
        *,
        reference: ReferenceLosses,
        seed: int,
        device: torch.device | str = "cpu",
        base: Tensor | None = None,
    ):
        self.task, self.arm, self.recipe = task, arm, recipe
        self.seed, self.device = seed, device
        self.selector: Selector | None = registry.build("selectors", arm.selector) if arm.selector else None
        self.model = _target(task, arm, recipe, seed).to(device)
        self.average = None
        if recipe.ema is not None:
            decay = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        self.reference = reference.following(self.model)
        if recipe.compile:
            self.model.compile()
        self.forward = Forward(task, parallel.wrap(self.model, recipe.parallel, device), recipe, seed)
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.precision == "fp16")
        self.gamma = GammaSchedule(arm, recipe, task.size)
        name, arguments = registry.parse(arm.average)
        average = GroupWeights(**arguments) if name == "groups" else cast(Average, arm.average)
        memory = DualMemory(task.rows, gamma=self.gamma(0), keep=not self.gamma.constant)
        self.steerer = Steerer(
            registry.build("rules", arm.rule),
            reference_scale=arm.reference_scale,
            population=getattr(task, "population", None) or task.size,
            memory=memory,
            over=arm.over,
            average=average,
            grouping=arm.grouping,
            base=base,
        )
        self.stream = task.stream(candidates_needed(arm, recipe, task.size), seed=seeds.derive(seed, "data"))
        self.counters = Counters()
        self.done = 0

    def step(self) -> Record:
        """One gradient step.

        Returns:
            The step's figures, ready for metrics.jsonl.

        Raises:
            RunError: the loss is not a finite number; the model is as it was before the step.
        """
        began = time.process_time()
        candidates = fail_on_all_ranks(lambda: next(self.stream).to(self.device))
        batch = self._select(candidates)
        reference, teacher = fail_on_all_ranks(lambda: self._reference_and_teacher(batch))
        self.model.train()
        losses, backward = self.forward(batch, self.done)
        steered = self._steer(losses, reference, batch)
        objective, distillation = steered.loss, None
        if teacher is not None:
            distillation = self._distillation(losses, teacher, steered)
            objective = objective + self.arm.distill * distillation
        loss = float(all_reduce_sum(objective.detach()) / world_size())
        if not math.isfinite(loss):
            ids = _not_finite(losses, batch)
            for answers in () if len(ids) else (reference, teacher):
                self._check_reference(answers, batch)
            raise self._error(loss, ids if len(ids) else all_gather(batch.ids))
        backward(self.scaler.scale(objective))
        figures = {"learning_rate": self._update()} | self._figures(steered, distillation)
        self.done += 1
        self.counters.add(batch, steered.weights, candidates=len(candidates), rows=losses.rows)
        self.counters.effective += figures["effective"] or 0.0
        self.counters.cpu_seconds += time.process_time() - began
        totals = {"samples": self.counters.samples, "cpu_seconds": round(self.counters.cpu_seconds, 3)}
        return {"step": self.done, "loss": loss, **totals, **figures, "facts": self.counters.means()}

    def _select(self, candidates: Batch) -> Batch:
        """The samples worth a gradient step, scored without side effects."""
        if (selector := self.selector) is None:
            return candidates
        parallel.broadcast_buffers(self.model)  # with which every rank scores
        losses = score(self.task, self.model, candidates, self.recipe)
        if len(ids := _not_finite(losses, candidates)):
            raise self._error(math.nan, ids)
        reference = None
        if selector.uses_reference:
            scored = fail_on_all_ranks(lambda: self.reference(candidates))
            self._check_reference(scored, candidates)
            reference = _one_each(scored, len(candidates))
        number = self.recipe.batch // world_size()
        chance = seeds.generator(self.seed, "selection", self.done, rank())  # so there is no state to save
        losses = _one_each(losses, len(candidates))
        return fail_on_all_ranks(lambda: candidates.take(selector(losses, reference, number=number, generator=chance)))

    def _error(self, loss: float, ids: Tensor) -> RunError:
        return RunError(f"the loss became {loss} in step {self.done + 1}; sample ids {_names(ids)}")

    def _check_reference(self, losses: Losses | None, batch: Batch) -> None:
        """What the reference did is not the samples' fault."""
        if losses is not None and len(ids := _not_finite(losses, batch)):
            raise UserError(
                f"the reference's own losses are not finite, of sample ids {_names(ids)} say: its weights or stored "
                f"losses are damaged, or it cannot tell these samples; use another reference"
            )

    def _reference_and_teacher(self, batch: Batch) -> tuple[Losses | None, Losses | None]:
        """The losses of the reference and of the teacher, of each that the arm uses."""
        teacher = self.reference.teacher if self.arm.distill else None
        same = teacher is self.reference
        used = self.arm.subtract or self.arm.score == "reference"
        reference = self.reference(batch, outputs=same) if used else None
        if teacher is None or (same and reference is not None):
            return reference, reference if same else None
        return reference, teacher(batch, outputs=True)

    def _steer(self, losses: Losses, reference: Losses | None, batch: Batch) -> Steered:
        self.steerer.memory.gamma = self.gamma(self.done)
        values = None if reference is None else fail_on_all_ranks(lambda: same_entries(losses, reference, batch.ids))
        scores = self._scores(losses, values)
        values = values if self.arm.subtract else None
        options = {"mask": losses.mask, "rows": losses.rows, "groups": losses.groups, "scores": scores}
        return self.steerer(losses.values, values, ids=batch.ids, **options)

    def _scores(self, losses: Losses, reference: Tensor | Pairs | None) -> Tensor | None:
        """What the rule weighs by, where it is not the excess."""
        if self.arm.score is None:
            return None
        if is_pairs(losses.values):
            raise UserError(f"score={self.arm.score} is for single losses, this task has Pairs: use a selector there")
        if self.arm.score == "reference":
            assert isinstance(reference, Tensor)
            return -reference
        chance = seeds.generator(self.seed, "scores", self.done, rank())  # so there is no state to save
        return torch.rand(losses.values.shape, generator=chance).to(losses.values.device)

    def _distillation(self, losses: Losses, teacher: Losses, steered: Steered) -> Tensor:
        """The divergence of the target's answers from the teacher's, a scalar in the unit of the steered loss."""
        values, rule = losses.values, self.steerer.rule
        if not is_pairs(values):
            answers = teacher.in_order_of(losses.rows).outputs
            if losses.outputs is None or answers is None:
                raise UserError("this task gives no answers to distil (Losses.outputs): use a distill of 0")
            average = "entries" if self.arm.average == "entries" else "rows"
            return distil(losses.outputs, answers, mask=losses.mask, rows=losses.rows, average=average)
        assert is_pairs(teacher.values)
        if not isinstance(rule, Tempered):  # whose temperature is not the model's to learn
            values = Pairs(values.left, values.right, values.detach().scale)
        divergence = distil(values, teacher.values)
        in_nats = rule.nats if isinstance(rule, Tempered) else steered.temperature is None
        return divergence if in_nats else divergence / values.scale

    def _update(self) -> float:
        """Takes an optimiser step along the gradients; gives the learning rate."""
        rate = learning_rate(self.recipe, self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        parallel.average_scalar_gradients(self.model)
        self.scaler.unscale_(self.optimizer)  # after averaging: what overflowed on one rank is skipped by all
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.reference.update()
        return rate

    def _figures(self, steered: Steered, distillation: Tensor | None) -> Record:
        """What a record tells of the steering."""
        variance = self.steerer.variance
        return {
            "scale": float(steered.scale) if self.arm.subtract else None,
            "variance_ratio": None if variance.values is None else float(variance.ratio(steered.scale.double())),
            "gamma": self.steerer.memory.gamma,
            **steered.figures(),
            "distillation": None
            if distillation is None
            else float(all_reduce_sum(distillation.detach()) / world_size()),
        }

    @property
    def result(self) -> nn.Module:
        """What is evaluated and exported: the model, or the moving average of its weights; whole, on every rank."""
        model = self.model if self.average is None else self.average.module
        if parallel.is_sharded(model):
            with seeds.untouched():
                model = self.task.target().to(self.device)
            parallel.copy_sharded(self.model, model)
        parallel.broadcast_buffers(model)
        return model

    def state_dict(self) -> dict[str, Any]:
        """All of it, whole whatever the number of ranks, on the first; every rank has to ask for it."""
        return parallel.full_state_dict(self.model, self.optimizer) | self.progress()

    def progress(self) -> dict[str, Any]:
        """The state but for the weights and the optimiser's, the same on every rank."""
        return {
            "format": checkpoint.FORMAT,
            "of": identity(self.task, self.arm),
            "done": self.done,
            "steerer": self.steerer.state_dict(),
            "stream": self.stream.state_dict(),
            "counters": self.counters.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "reference": self.reference.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parallel.load_full_state_dict(self.model, self.optimizer, state)
        self.steerer.load_state_dict(state["steerer"])
        self.stream.load_state_dict(state["stream"])
        self.counters = Counters(**state["counters"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.reference.load_state_dict(state["reference"])
        self.done = state["done"]


def _target(task: Task, arm: Arm, recipe: Recipe, seed: int) -> nn.Module:
    """The target as an arm begins with it.

    Raises:
        UserError: it has not what arm or recipe ask of it.
    """
    if recipe.ema is not None and recipe.parallel == "fsdp" and world_size() > 1:
        raise UserError("a moving average of weights (recipe.ema) needs recipe.parallel=ddp, got fsdp")
    seeds.seed_everything(seeds.derive(seed, "model"))
    model: Any = task.target()

    def require(method: str, purpose: str) -> None:
        if not hasattr(model, method):
            raise UserError(f"this task's target cannot {purpose}: it has no {method}. Leave that setting out")

    if recipe.grad_checkpointing:
        require("set_grad_checkpointing", "compute activations again (recipe.grad_checkpointing)")
        model.set_grad_checkpointing(True)
    if arm.temperature is not None:
        require("set_temperature", "be given a temperature to begin with")
        model.set_temperature(arm.temperature, learn=True)
    return model


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; only matrices are decayed, and scalars have a learning rate of their own.

    Every group's ``factor`` is its learning rate's share of the recipe's.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": recipe.weight_decay, "factor": 1.0},
        {"params": [p for p in learned if p.dim() == 1], "weight_decay": 0.0, "factor": 1.0},
        {"params": [p for p in learned if p.dim() == 0], "weight_decay": 0.0, "factor": recipe.scalar_lr_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.adam_epsilon)


def candidates_needed(arm: Arm, recipe: Recipe, size: int) -> int:
    """Samples drawn for one gradient step, over all ranks, of ``size`` there are.

    Raises:
        UserError: there are fewer.
    """
    keep = registry.build("selectors", arm.selector).keep if arm.selector else 1
    candidates = round(recipe.batch / keep)
    if candidates > size:
        raise UserError(
            f"{arm.selector or 'a step'} needs {candidates} candidates for a batch of {recipe.batch}, but there are "
            f"{size} training samples: use a smaller batch or keep a larger share"
        )
    return candidates


def _names(ids: Tensor) -> str:
    return ", ".join(map(str, ids[:20].tolist())) + (", ..." if len(ids) > 20 else "")


def _one_each(losses: Losses, n: int) -> Tensor | Pairs:
    """What selectors are given: losses ``[n]``, Pairs, or means ``[n, 1]``, NaN where a sample has no loss."""
    values = losses.per_sample(n)
    return values if is_pairs(values) or values is losses.values else values[:, None]


def _not_finite(losses: Losses, batch: Batch) -> Tensor:
    """Ids, on all ranks, of the samples whose own losses are not finite."""
    finite = losses.finite(len(batch)).to(batch.ids)
    return all_gather(batch.ids)[all_gather(finite) == 0]
