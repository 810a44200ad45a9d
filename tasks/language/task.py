"""Selective language modelling: which tokens of a misread text are worth learning from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steering.errors import UserError
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.tasks.language.model import CausalTransformer
from steering.tasks.language.text import Tokens, speeches, tokenise, vocabulary
from steering.training.loader import ShuffledLoader
from steering.training.seeds import derive, seed_everything, untouched

__all__ = ["Language"]

CONTEXT = 128
SIZE = 3600  # windows to train on: what there is of them without noise, which only lengthens a text
HELD_OUT_WINDOWS = 320
REFERENCE_STEPS, REFERENCE_BATCH, REFERENCE_LEARNING_RATE = 178, 8, 4e-3


@dataclass(frozen=True)
class Language:
    """A small causal transformer on misread speeches, and a reference that read others as they were spoken.

    The text is that of the State of the Union speeches from 1961 on: 46 are trained on, and the letters of a share of
    their words are misread; 7 others, as they were spoken, train the reference, a model of the same form; those from
    2014 on are never trained on. A sample is a window of 128 tokens, and its losses are those of its tokens, so that
    rules weigh tokens: ``cvar(alpha=0.6)`` over a batch is the token selection of Rho-1 (Lin et al. 2024, section 2.2).

    A repetition redraws the errors, the initial weights and the order; speeches and reference stay.

    Args:
        noise: share of the words that are misread.
        ref: ``own``, or a causal language model of Hugging Face by name or folder. The losses of its tokens are spread
            over their characters and summed over those of ours.
        seed: of the errors; repetition s of a run uses seed + s.
    """

    noise: float = 0.3
    ref: str = "own"
    seed: int = 0

    rows = 1
    size = SIZE
    population = CONTEXT * SIZE  # tokens
    recipe = Recipe(
        steps=200,
        batch=8,
        optimizer="adamw",
        learning_rate=6e-3,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip_norm=1.0,
        warmup=20,
        seeds=1,
        evaluate_every=100,
        arms={
            "plain": Arm(rule="uniform", subtract=False, over="batch", average="entries"),
            "rho1": Arm(rule="cvar(alpha=0.6)", over="batch", average="entries"),
            "drrho_kl": Arm(rule="kl(temperature=2)", over="batch", average="entries"),
            "distill": Arm(rule="uniform", subtract=False, over="batch", average="entries", distill=0.5),
            "random_k": Arm(rule="cvar(alpha=0.6)", score="random", subtract=False, over="batch", average="entries"),
            "lowest_reference": Arm(
                rule="cvar(alpha=0.6)", score="reference", subtract=False, over="batch", average="entries"
            ),
        },
        more={
            "rho1_rows": Arm(rule="cvar(alpha=0.6)", over="rows", average="entries"),
            "top_loss": Arm(rule="cvar(alpha=0.6)", subtract=False, over="batch", average="entries"),
        },
        baseline="plain",
    )

    def __post_init__(self):
        if not 0 <= self.noise <= 1:
            raise UserError(f"language needs a noise within 0 and 1, got {self.noise:g}")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Metric(label="nats a token", better="low")}

    def seeded(self, seed: int) -> Self:
        return replace(self, seed=self.seed + seed)

    def target(self) -> nn.Module:
        return CausalTransformer(self._text.ids.bincount(minlength=vocabulary()), CONTEXT)

    def reference(self) -> Any:
        if self.ref == "own":
            return own_reference()
        from steering.tasks.language.pretrained import PretrainedReference

        return PretrainedReference(self.ref, self._text, CONTEXT)

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(self._load, size=self.size, batch=batch, seed=seed)

    def _load(self, ids: Tensor, _: torch.Generator) -> Batch:
        wrong = windows(self._text.wrong)[ids, 1:]
        return Batch(ids, {"tokens": self._windows[ids]}, {"wrong": wrong})

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        tokens = batch["tokens"]
        scores = model(tokens[:, :-1])
        return Losses(F.cross_entropy(scores.mT, tokens[:, 1:], reduction="none"), outputs=scores)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        parts = held_out().to(device).split(32)
        losses = [F.cross_entropy(model(x[:, :-1]).mT, x[:, 1:], reduction="none").double() for x in parts]
        return {"loss": float(torch.cat(losses).mean())}

    @cached_property
    def _text(self) -> Tokens:
        return tokenise(speeches()["train"], self.noise, derive(self.seed, "language"))

    @cached_property
    def _windows(self) -> Tensor:
        return windows(self._text.ids)[:SIZE]


def windows(tokens: Tensor) -> Tensor:
    """``[windows, CONTEXT + 1]``: the last token of a window is the first one of the next."""
    return tokens.unfold(0, CONTEXT + 1, CONTEXT)


@cache
def held_out() -> Tensor:
    """Windows of the speeches that are never trained on, evenly spread."""
    every = windows(tokenise(speeches()["held_out"]).ids)
    return every[torch.linspace(0, len(every) - 1, HELD_OUT_WINDOWS).long()]


@cache
def own_reference() -> nn.Module:
    """The reference, trained when it is first asked for: about 15 seconds of one core."""
    text = tokenise(speeches()["reference"])
    samples = windows(text.ids)
    with untouched():
        seed_everything(derive(0, "language reference"))
        model = CausalTransformer(text.ids.bincount(minlength=vocabulary()), CONTEXT)
        optimizer = torch.optim.AdamW(model.parameters(), REFERENCE_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, REFERENCE_LEARNING_RATE, total_steps=REFERENCE_STEPS, pct_start=0.1, cycle_momentum=False
        )
        order = torch.cat([torch.randperm(len(samples)) for _ in range(REFERENCE_STEPS)])
        for step in range(REFERENCE_STEPS):
            x = samples[order[step * REFERENCE_BATCH : (step + 1) * REFERENCE_BATCH]]
            F.cross_entropy(model(x[:, :-1]).mT, x[:, 1:]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval().requires_grad_(False)
