"""The one training loop: every task, rule, selector and baseline goes through it."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering import registry
from steering.contrastive.pairs import Pairs
from steering.distillation import distil
from steering.distributed import all_gather, all_reduce_sum, fail_on_all_ranks, rank, world_size
from steering.dual_memory import DualMemory
from steering.engine import Steered, Steerer
from steering.errors import RunError, UserError
from steering.rules.rule import Tempered
from steering.selectors.selector import Selector
from steering.settings import Arm, Recipe
from steering.task import Batch, Losses, Task
from steering.training import checkpoint, parallel, seeds
from steering.training.counters import Counters
from steering.training.forward import Forward, score
from steering.training.gamma import GammaSchedule
from steering.training.optimizer import average_of, learning_rate, make_optimizer
from steering.training.reference_losses import ReferenceLosses

Record = dict[str, Any]


class Training:
    """One arm in training: all that changes from step to step, and how to save it.

    Arms with the same seed start from the same weights and see the same order of data.

    Args:
        task: drawn for this repetition already (``task.seeded(seed)``).
        arm: the method.
        recipe: settings that every arm shares.
        reference: the reference's losses; only asked when the arm uses them.
        seed: of initial weights, data order, views and selection, each a stream of its own.
        device: where the target trains.
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
    ):
        self.task, self.arm, self.recipe, self.reference = task, arm, recipe, reference
        self.seed, self.device = seed, device
        self.selector: Selector | None = registry.build("selectors", arm.selector) if arm.selector else None
        seeds.seed_everything(seeds.derive(seed, "model"))
        self.model: nn.Module = task.target().to(device)
        if recipe.ema is not None and recipe.parallel == "fsdp" and world_size() > 1:
            raise UserError("a moving average of weights (recipe.ema) needs recipe.parallel=ddp, got fsdp")
        if recipe.grad_checkpointing:
            _switch(self.model, "set_grad_checkpointing", "compute activations again (recipe.grad_checkpointing)", True)
        if arm.temperature is not None:
            _switch(self.model, "set_temperature", "be given a temperature to begin with", arm.temperature, learn=True)
        self.average = average_of(self.model, recipe)
        if recipe.compile:
            self.model.compile()
        self.forward = Forward(task, parallel.wrap(self.model, recipe.parallel, device), recipe, seed)
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=recipe.precision == "fp16")
        self.gamma = GammaSchedule(arm, recipe, task.size)
        memory = DualMemory(task.rows, gamma=self.gamma(0), keep=not self.gamma.constant)
        rule = registry.build("rules", arm.rule)
        self.steerer = Steerer(rule, reference_scale=arm.reference_scale, population=task.size, memory=memory)
        self.stream = task.stream(candidates_needed(arm, recipe, task.size), seed=seeds.derive(seed, "data"))
        self.tally = Counters()
        self.done = 0  # steps

    def step(self) -> Record:
        """One gradient step.

        Returns:
            The step's figures, ready for metrics.jsonl.

        Raises:
            RunError: the loss is not a finite number; the model is as it was before the step.
        """
        began = time.process_time()
        candidates = fail_on_all_ranks(lambda: next(self.stream).to(self.device))  # what can fail on one rank alone
        batch = self._choose(candidates)
        known, taught = fail_on_all_ranks(lambda: self._told(batch))
        self.model.train()
        losses, backward = self.forward(batch, self.done)
        self.steerer.memory.gamma = self.gamma(self.done)
        steered = self.steerer(
            losses.values, known, ids=batch.ids, mask=losses.mask, rows=losses.rows, groups=losses.groups
        )
        lesson = None if taught is None else self._distil(losses, taught, steered)
        whole = steered.loss if lesson is None else steered.loss + self.arm.distill * lesson
        loss = float(all_reduce_sum(whole.detach()) / world_size())
        if not math.isfinite(loss):
            raise RunError(_not_finite(loss, self.done, losses, batch))
        backward(self.scaler.scale(whole))
        pace = self._update()
        self.done += 1
        self.tally.add(batch, steered.weights, candidates=len(candidates), rows=losses.rows)
        figures = steered.figures() | {
            "distillation": None if lesson is None else float(all_reduce_sum(lesson.detach()) / world_size())
        }
        self.tally.effective += figures["effective"] or 0.0
        self.tally.cpu_seconds += time.process_time() - began
        return self._record(loss, steered, pace) | figures | {"facts": self.tally.means()}

    def _told(self, batch: Batch) -> tuple[Tensor | Pairs | None, Losses | None]:
        """What reference and teacher say of the samples, where it matters."""
        known = self.reference(batch) if self.arm.subtract else None
        teacher = self.reference.teacher if self.arm.distill else None
        taught = known if teacher is self.reference and known is not None else teacher and teacher(batch)
        return None if known is None else known.values, taught

    def _distil(self, losses: Losses, taught: Losses, steered: Steered) -> Tensor:
        """How far the target's answers are from the teacher's, in the unit of the steered loss."""
        values, rule = losses.values, self.steerer.rule
        if not isinstance(values, Pairs):
            if losses.outputs is None or taught.outputs is None:
                raise UserError("this task gives no answers to distil (Losses.outputs): use a distill of 0")
            return distil(losses.outputs, taught.outputs)
        assert isinstance(taught.values, Pairs)
        if not isinstance(rule, Tempered):  # whose temperature is not the model's to learn
            values = Pairs(values.left, values.right, values.detach().scale)
        apart = distil(values, taught.values)
        in_nats = rule.nats if isinstance(rule, Tempered) else steered.temperature is None
        return apart if in_nats else apart / values.scale

    def _choose(self, candidates: Batch) -> Batch:
        """The samples worth a gradient step, scored without side effects."""
        if self.selector is None:
            return candidates
        parallel.broadcast_buffers(self.model)  # the first rank's, for all ranks
        losses = score(self.task, self.model, candidates, self.recipe).per_sample(len(candidates))
        reference = None
        if self.selector.uses_reference:
            reference = fail_on_all_ranks(lambda: self.reference(candidates)).per_sample(len(candidates))
        number = self.recipe.batch // world_size()
        chance = seeds.generator(self.seed, "selection", self.done, rank())  # so there is no state to save
        return candidates.take(self.selector(losses, reference, number=number, generator=chance))

    def _update(self) -> float:
        """Takes the step that the gradients say; gives the learning rate."""
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
        return rate

    @property
    def result(self) -> nn.Module:
        """What is evaluated and exported: the model, or the moving average of its weights; whole, on every rank."""
        model = self.model if self.average is None else self.average.module
        if parallel.is_sharded(model):
            with seeds.untouched():
                model = self.task.target().to(self.device)
            model.load_state_dict(parallel.full_state_dict(self.model.state_dict()))
        parallel.broadcast_buffers(model)
        return model

    def _record(self, loss: float, steered: Steered, pace: float) -> Record:
        moments = self.steerer.variance
        return {
            "step": self.done,
            "samples": self.tally.samples,
            "loss": loss,
            "scale": float(steered.scale) if self.arm.subtract else None,
            "variance_ratio": None if moments.values is None else float(moments.ratio(steered.scale.double())),
            "gamma": self.steerer.memory.gamma,
            "learning_rate": pace,
            "cpu_seconds": round(self.tally.cpu_seconds, 3),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The task's metrics, in evaluation mode, leaving no trace in the training."""
        return evaluate(self.task, self.result)

    def state_dict(self) -> dict[str, Any]:
        """All of it, whole, whatever the number of ranks; every rank has to ask for it."""
        return {
            "done": self.done,
            "model": parallel.full_state_dict(self.model.state_dict()),
            "optimizer": parallel.full_state_dict(self.optimizer.state_dict()),
            "steerer": self.steerer.state_dict(),
            "stream": self.stream.state_dict(),
            "tally": self.tally.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        parallel.load_model(self.model, state["model"])
        parallel.load_optimizer(self.optimizer, state["optimizer"])
        self.steerer.load_state_dict(state["steerer"])
        self.stream.load_state_dict(state["stream"])
        self.tally = Counters(**state["tally"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def candidates_needed(arm: Arm, recipe: Recipe, size: int) -> int:
    """Samples drawn for one gradient step, over all ranks, of ``size`` there are.

    Raises:
        UserError: there are fewer.
    """
    keep = registry.build("selectors", arm.selector).keep if arm.selector else 1
    wanted = round(recipe.batch / keep)
    if wanted > size:
        raise UserError(
            f"{arm.selector or 'a step'} needs {wanted} candidates for a batch of {recipe.batch}, but there are "
            f"{size} training samples: use a smaller batch or keep a larger share"
        )
    return wanted


def trained(task: Task, path: Path, device: torch.device | str = "cpu", *, steps: int = 0) -> nn.Module:
    """The model of a checkpoint as it was evaluated: the moving average of its weights where there is one.

    Args:
        task: drawn for that repetition.
        path: of the checkpoint.
        device: where the model shall be.
        steps: that it must have been trained for.

    Raises:
        UserError: the checkpoint is not there, not that far, or of another model.
    """
    state = checkpoint.load(path)
    with seeds.untouched():
        model = task.target()
    try:
        done, averaged = state["done"], state["average"]
        inner = "module."
        whole = {n.removeprefix(inner): x for n, x in (averaged or {}).items() if n.startswith(inner)}
        model.load_state_dict(whole or state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # torch's ways to say that shapes differ
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit the model of {task!r} ({reason}): was the code changed?") from None
    if done < steps:
        raise UserError(f"{path} is not trained to the end ({done} of {steps} steps): steer run --resume the run")
    return model.to(device).eval()


@torch.no_grad()
def evaluate(task: Task, model: nn.Module) -> dict[str, float]:
    """The task's metrics of a model, in evaluation mode and without touching any global generator."""
    was_training = model.training
    model.eval()
    with seeds.untouched():
        metrics = task.evaluate(model)
    model.train(was_training)
    return metrics


def run(
    training: Training,
    path: Path,
    *,
    record: Callable[[Record], None],
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains to the end of the recipe, with checkpoints at ``path``; continues the one that is there.

    Any number of ranks may continue what another number began, as far as the batch can be shared evenly. With the
    same number a run that was stopped, or killed and repeated from its last checkpoint, ends with the same bits.

    Args:
        training: fresh; its state is replaced by the checkpoint's if there is one.
        path: of the checkpoint.
        record: takes every step's figures, and ``{"step", "samples", "evaluation"}`` after an evaluation.
        stopped: asked after every step; True, on any rank, ends the run of all with a checkpoint.

    Returns:
        Whether the end of the recipe was reached.

    Raises:
        RunError: the loss or the weights are not finite; the last good checkpoint is kept.
    """
    recipe = training.recipe
    with checkpoint.Saver(path, keep=recipe.keep_checkpoints) as saver:
        if _anyone(path.exists(), training.device):
            _restore(training, path)
        else:
            _save(saver, training)
        while training.done < recipe.steps:
            record(training.step())
            last = training.done == recipe.steps
            if last or (recipe.evaluate_every and training.done % recipe.evaluate_every == 0):
                record({"step": training.done, "samples": training.tally.samples, "evaluation": training.evaluate()})
            halt = _anyone(stopped(), training.device) and not last
            late = recipe.checkpoint_minutes and _anyone(_late(saver, recipe.checkpoint_minutes), training.device)
            if last or halt or training.done % recipe.checkpoint_every == 0 or late:
                _check_weights(training)
                _save(saver, training)
            if halt:
                fail_on_all_ranks(saver.wait)  # a launcher ends all processes when the first of them has gone
                return False
    return True


def _late(saver: checkpoint.Saver, minutes: float) -> bool:
    """Whether the last checkpoint is too old, by the clock of the first rank, which writes them."""
    return rank() == 0 and saver.age() > 60 * minutes


def _save(saver: checkpoint.Saver, training: Training) -> None:
    """Begins to write a checkpoint, on the first rank."""
    state = training.state_dict() if rank() == 0 or parallel.is_sharded(training.model) else {}
    fail_on_all_ranks(lambda: saver.save(state) if rank() == 0 else None)


def _restore(training: Training, path: Path) -> None:
    state = checkpoint.load(path)
    try:
        training.load_state_dict(state)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # torch's ways to say that shapes differ
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint {path} does not fit the model or optimiser ({reason}): was the code changed? "
            f"Delete it to start that arm anew"
        ) from None


def _anyone(says_so: bool, device: torch.device | str) -> bool:
    """Whether any rank says so: all have to end after the same step, or those left would wait for ever."""
    return bool(all_reduce_sum(torch.tensor(float(says_so), device=device))) if world_size() > 1 else says_so


def _switch(model: nn.Module, name: str, what: str, *values: Any, **more: Any) -> None:
    """Calls a method that a target may have."""
    if not hasattr(model, name):
        raise UserError(f"this task's target cannot {what}: it has no {name}. Leave that setting out")
    getattr(model, name)(*values, **more)


def _check_weights(training: Training) -> None:
    """A checkpoint that cannot be trained on must not replace one that can."""
    for name, weight in training.model.named_parameters():
        if not weight.isfinite().all():
            raise RunError(f"weights of {name} are not finite after step {training.done}: use a smaller learning rate")


def _not_finite(loss: float, step: int, losses: Losses, batch: Batch) -> str:
    """Names the step and the samples, of all ranks: those whose own loss is not finite, or the whole batch."""
    values = losses.detach().per_sample(len(batch))
    if isinstance(values, Pairs):
        finite = values.left.isfinite().all(-1) & values.right.isfinite().all(-1)
    else:
        finite = values.isfinite()
    ids, finite = all_gather(batch.ids), all_gather(finite.to(batch.ids))
    bad = ids if finite.all() else ids[finite == 0]
    shown = ", ".join(str(int(i)) for i in bad[:20]) + (", ..." if len(bad) > 20 else "")
    return f"the loss became {loss} in step {step + 1}; sample ids {shown}"
