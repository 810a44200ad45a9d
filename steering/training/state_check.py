"""Whether what a checkpoint holds is the state of a training, found out before anything of it is used."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steering.settings import Arm
from steering.task import Task
from steering.training.loader import ShuffledLoader

if TYPE_CHECKING:
    from steering.training.step import Training


def identity(task: Task, arm: Arm) -> dict[str, Any]:
    """What a checkpoint is of: the options of task and arm that are not as by default and may not change on the way."""
    options = fields(task) if is_dataclass(task) else ()  # type: ignore[arg-type]
    options = [option for option in options if not option.metadata.get("elastic")]
    typed = {x.name: repr(getattr(task, x.name)) for x in options if getattr(task, x.name) != _default(x)}
    return {"task": type(task).__name__} | typed | arm.model_dump(mode="json", exclude_defaults=True)


def _default(option: Any) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def check_state(state: Mapping[str, Any], training: "Training") -> None:
    """Checks every part of a state against the training that shall go on from it; nothing is changed.

    Raises:
        ValueError: the first part that does not fit, in words.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"it is a {type(state).__name__}")
    own = training.progress() | {"model": training.model.state_dict(), "optimizer": {}, "stream": {}, "reference": {}}
    before, now = state.get("of", own["of"]), own.pop("of")
    if before != now:  # of an earlier version it is missing
        differ = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        pairs = [f"{name} {before.get(name)}, not {now.get(name)}" for name in differ[:3]]
        raise ValueError(f"it is of {', '.join(pairs)}")
    _check_numbers("done", state.get("done"), 0)
    if state["done"] > training.recipe.steps:
        raise ValueError(f"it has taken {state['done']} steps of {training.recipe.steps}")
    table, variance = (_at(state, "steerer", *names) for names in (("memory", "table"), ("variance", "values")))
    if table is not None:
        size = _at(state, "steerer", "memory", "size")
        shape = size if isinstance(size, int) and size > 0 else 1, getattr(training.steerer.rule, "width", 1)
        own["steerer"]["memory"]["table"] = torch.empty(shape, device="meta")
    if variance is not None:
        own["steerer"]["variance"]["values"] = torch.empty(3, device="meta")
    for name, part in own.items():
        if name not in state:
            raise ValueError(f"it has no {name}")
        _check(name, state[name], part)
    if isinstance(training.stream, ShuffledLoader):
        _check_numbers("stream.position", _at(state, "stream", "position"), 0)
        if state["stream"]["position"] != state["done"]:
            raise ValueError(f"it has taken {state['done']} steps and {state['stream']['position']} batches")
    _check_optimizer(state["optimizer"], training, state["done"])
    if state["reference"]:
        _ = training.reference.reference  # begins a moving average, if that is what it is
        _check("reference", state["reference"], training.reference.state_dict() or None)


def _at(state: Any, *names: str) -> Any:
    """What stands in nested mappings under these names, None if nothing does."""
    for name in names:
        state = state.get(name) if isinstance(state, Mapping) else None
    return state


def _check(name: str, saved: Any, own: Any) -> None:
    """Compares a part with one of the training; an empty mapping has any names, and ``...`` is anything plain."""
    if isinstance(own, Tensor):
        steerer = name.startswith("steerer.")  # whose types are those of the losses, and where NaN is unset
        same = isinstance(saved, Tensor) and (saved.is_floating_point() if steerer else saved.dtype == own.dtype)
        if not same or saved.shape != own.shape:
            raise ValueError(f"{name} is {_form(saved)}, not {_form(own)}")
        if not steerer:
            _check_finite(name, saved)
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or (own and saved.keys() != own.keys()):
            raise ValueError(f"{name} has {_few(saved)}, not {_few(own)}")
        for key, value in saved.items():
            _check(f"{name}.{key}", value, own.get(key, ...))
    elif isinstance(own, bool | str):
        if type(saved) is not type(own):
            raise ValueError(f"{name} is {_form(saved)}, not {_form(own)}")
    elif isinstance(own, int | float):
        _check_numbers(name, saved, own)
    elif (own is None and isinstance(saved, Mapping)) or (isinstance(saved, float) and not math.isfinite(saved)):
        raise ValueError(f"{name} is {_form(saved)}, and this run has none")


def _check_numbers(name: str, saved: Any, own: float) -> None:
    allowed = isinstance(saved, type(own)) and not isinstance(saved, bool) and 0 <= saved < math.inf
    if not allowed:
        raise ValueError(f"{name} is {_form(saved)}, not a number of 0 or more")


def _check_finite(name: str, saved: Tensor) -> None:
    if saved.is_floating_point() and not saved.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")


def _check_optimizer(saved: Any, training: "Training", done: int) -> None:
    if not saved and (done == 0 or training.scaler.is_enabled()):  # which leaves out steps that overflow
        return
    _check("optimizer", saved, {"state": {}, "param_groups": ...})
    weights = dict(training.model.named_parameters())
    names = {weight: name for name, weight in weights.items()}
    own = [_settings(group, names) for group in training.optimizer.param_groups]
    before = [_settings(group, {}) for group in saved["param_groups"] or () if isinstance(group, Mapping)]
    if len(before) != len(own):
        raise ValueError("its optimiser has other groups of weights")
    for old, new in zip(before, own, strict=True):
        for name in old.keys() & new.keys():  # a version of torch may have more of them
            if old[name] != new[name]:
                raise ValueError(f"{name} of its optimiser is {_form(old[name])}, not {_form(new[name])}")
    for name, slots in saved["state"].items():
        _check(f"optimizer.{name}", slots, {})
        for slot, value in slots.items():
            path = f"optimizer.{name}.{slot}"
            if slot == "step" and not (isinstance(value, Tensor) and value.numel() == 1 and 0 <= float(value) <= done):
                raise ValueError(f"{path} is {_form(value)}, not a number from 0 to {done}")
            if slot != "step" and value is not None:
                _check(path, value, weights.get(name, {}))
                if slot == "exp_avg_sq" and (value < 0).any():
                    raise ValueError(f"{path} has squares below 0")


def _settings(group: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """Settings of a group of weights, and their names, but for the learning rate, which a step sets anew."""
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in group.items() if name not in ("lr", "params")}
    return values | {"params": sorted(names.get(weight, weight) for weight in group.get("params", ()))}


def _form(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {value.dtype}" if value.numel() != 1 else f"{value.dtype} {float(value):g}"
    return f"{type(value).__name__} {str(value)[:40]}"


def _few(value: Any) -> str:
    names = list(map(str, value)) if isinstance(value, Mapping) else []
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or _form(value)
