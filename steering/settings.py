"""What a run is made of: arms to compare and the settings they are trained with. No torch in here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
AtLeastOne = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"]


class Strict(BaseModel):
    """A frozen settings group that knows every one of its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Arm(Strict):
    """One method of a comparison. Plugins are written as their own constructor call.

    Attributes:
        rule: weights the losses of a batch, ``kl(rho=80)`` say.
        selector: chooses the samples of a batch from a larger one first, ``jest()`` say; null takes all.
        subtract: whether the rule sees loss - scale * reference loss, or the loss alone (plain DRO, ERM).
        reference_scale: that scale, a number of at least 0 or ``auto``.
        score: what the rule weighs by in place of the excess: the ``reference``'s losses, the lowest first, or
            ``random`` numbers, the control that any choice has to beat; null for the excess. Not for Pairs.
        base: weights that the rule's divergence is taken to in place of uniform ones: ``auto``, the posterior that a
            label or a pair is right by the reference; ``auto(folds=4)``, by the reference and by plain targets that
            were trained without the sample; null is uniform, but for the rule ``auto``.
        over: what weights are distributed over: ``batch``, all entries (tokens) of the batch, or ``rows``, those of
            every sample for themselves; null is rows where samples have several entries.
        average: whether the loss is the mean over samples (``rows``) or over their ``entries``; or ``groups(...)``,
            weights over the task's groups that grow with their excess, with ``step_size`` and ``smoothing``.
        grouping: what the task's groups are for: ``centre`` the excess within them, or a row for each (``rows``).
        gamma: weight of the newest dual in the moving average of duals (gamma of SogCLR, FastCLIP and DRRho-CLIP), at
            the end of its schedule; 1 remembers nothing. ``auto`` is min(1, 4.177 epochs^-0.7265), the rule of
            DRRho-CLIP's authors.
        gamma_schedule: ``constant``, or a cosine from 1 down to gamma, in steps of an epoch (``cosine``, the first
            epoch is at 1) or of a batch (``cosine_per_step``).
        gamma_decay: share of the run after which the cosine has come down: 1 for DRRho-CLIP, 0.5 for FastCLIP.
        temperature: at which the target's own temperature begins, for rules that learn it; null leaves it to the task.
        distill: weight of a second loss, the mean KL(teacher || target) of their answers; 0 for none. In the unit of
            the steered loss: nats, or for Pairs whose rule has a temperature nats times that of the target. The
            teacher is the reference, or what the task names.
    """

    rule: str = "uniform"
    selector: str | None = None
    subtract: bool = True
    reference_scale: Scale = 1.0
    score: Literal["reference", "random"] | None = None
    base: Annotated[str, Field(pattern=r"^auto(\(.*\))?$")] | None = None
    over: Literal["batch", "rows"] | None = None
    average: Annotated[str, Field(pattern=r"^(rows|entries|groups(\(.*\))?)$")] = "rows"
    grouping: Literal["centre", "rows"] | None = None
    gamma: Share | Literal["auto"] = 1.0
    gamma_schedule: Literal["constant", "cosine", "cosine_per_step"] = "constant"
    gamma_decay: Share = 1.0
    temperature: Positive | None = None
    distill: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Recipe(Strict):
    """How every arm of a run is trained, alike for all of them.

    Attributes:
        steps: gradient steps of every arm.
        batch: samples in a gradient step, over all ranks.
        micro_batch: samples that go through the target at a time, on a rank; the gradient is that of the whole batch.
        precision: of the target's forward pass: ``float32``, or ``bf16`` or ``fp16`` by autocast. Losses and parameters
            are float32.
        ema: share of the past in a moving average of the weights, 0.999 say, which is then evaluated and exported.
        compile: whether torch.compile compiles the target.
        grad_checkpointing: whether activations are computed again on the way back instead of kept.
        parallel: how several processes share the target: each has all of it (``ddp``), or a part (``fsdp``).
        optimizer: ``adamw``, ``adam`` or ``sgd`` (momentum 0.9).
        learning_rate: at its peak, after the warm-up.
        betas, adam_epsilon: of adamw and adam.
        weight_decay: decoupled for adamw, added to the gradient for adam and sgd; biases, norms and scalars are spared.
        schedule: ``cosine`` to zero, or ``constant``.
        warmup: steps over which the learning rate rises linearly.
        clip_norm: largest norm of the whole gradient; null does not clip.
        seeds: independent repetitions; repetition s is the same draw of data and weights for every arm.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
        log_every: steps between lines of metrics.jsonl.
        checkpoint_every: steps between checkpoints; one is always written at the end and on a signal.
        checkpoint_minutes: most minutes between them, on top of that.
        keep_checkpoints: how many of an arm and seed are kept, the newest as ``checkpoint.pt``.
        scalar_lr_factor: learning rate of scalars, such as a temperature that is learned, as a share of the others'.
        arms: what is compared, by name. ``reference`` is always evaluated beside them.
        more: arms that are there for the asking, ``--arms all`` or by name.
        baseline: the arm that differences are taken against.
    """

    steps: AtLeastOne
    batch: AtLeastOne
    micro_batch: AtLeastOne | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    compile: bool = False
    grad_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    adam_epsilon: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    clip_norm: Positive | None = None
    seeds: AtLeastOne = 1
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    log_every: AtLeastOne = 10
    checkpoint_every: AtLeastOne = 200
    checkpoint_minutes: Positive | None = None
    keep_checkpoints: AtLeastOne = 1
    scalar_lr_factor: Positive = 1.0
    arms: dict[str, Arm]
    more: dict[str, Arm] = {}
    baseline: str


class Metric(Strict):
    """How to read one number that ``Task.evaluate`` returns.

    Attributes:
        label: words for tables and plots.
        better: which direction is better.
        chance: value of a model that guesses, if there is such a thing.
        percent: whether it is a share, shown times 100.
    """

    label: str
    better: Literal["high", "low"] = "high"
    chance: float | None = None
    percent: bool = False


RENAMED = {"rate": "gamma", "rate_schedule": "gamma_schedule", "rate_decay": "gamma_decay"}
RENAMED |= {"scale_rate": "scalar_lr_factor"}


def with_present_names(recipe: Any) -> Any:
    """Settings of a recipe, or of an arm, whose names of earlier versions are replaced by today's."""
    if not isinstance(recipe, Mapping):
        return recipe
    settings = {RENAMED.get(name, name): value for name, value in recipe.items()}
    for group in {"arms", "more"} & settings.keys():
        if isinstance(settings[group], Mapping):
            settings[group] = {name: with_present_names(arm) for name, arm in settings[group].items()}
    return settings
