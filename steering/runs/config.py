"""The configuration of a run: the task's own recipe, a file, options; merged, validated, written down."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from steering import atomic_files, registry
from steering.errors import UserError, did_you_mean
from steering.settings import Arm, Recipe, Strict, with_present_names
from steering.trust import refuse_code

if TYPE_CHECKING:  # a typing mistake must not wait for torch
    from steering.task import Task

LARGEST, MOST_REFERENCES = 1_000_000, 16  # bytes of a configuration file; ${...} in it, each of which may double it
STEERED = "steered"  # name of the arm made by --rule, --selector, --reference-scale
AUTO = "auto"  # that of the arm made by --rule auto


class RunConfig(Strict):
    """A whole run; what config.yaml holds.

    Attributes:
        task: name of the task, or package.module:Name.
        options: arguments of the task's constructor.
        recipe: training settings and arms.
        device: ``auto`` (CUDA if there is any), ``cpu``, ``cuda``, ``cuda:1``.
        threads: CPU threads of torch; 1 is fastest for the bundled tasks and never the slowest.
    """

    task: str
    options: dict[str, Any] = Field(default_factory=dict)
    recipe: Recipe
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


def resolve(
    task: str | None,
    *,
    file: Path | None = None,
    sets: Sequence[str] = (),
    typed: Mapping[str, Any] | None = None,
    preset: str | None = None,
) -> "tuple[RunConfig, Task]":
    """Merges the task's recipe with a file, with options and with ``a.b=c`` settings, later ones winning.

    Args:
        task: name or constructor call, ``digits(noise=0.2)``; may be left to the file.
        file: a YAML file like the config.yaml of a run folder. The arms it names, if any, are all there are.
        sets: settings by dotted path, ``recipe.steps=100``.
        typed: nested settings from options of the command line.
        preset: settings by a name that the task's attribute ``presets`` knows; everything else wins over them.

    Returns:
        The configuration, complete, and the task it names.

    Raises:
        UserError: unknown setting, wrong type or range, unreadable file.
    """
    if preset is not None and file is not None:
        raise UserError(f"a preset and a file of settings, {preset} and {file}: give one of them")
    base = {} if file is None else read(file)
    refuse_code(base, file)
    layers = [_expanded(layer) for layer in ({"task": task}, typed or {}, _dotted(sets))]
    merged = _merge(_expanded(base), *layers)
    if "task" not in merged:
        raise UserError(f"no task given: steer run TASK. Known: {', '.join(registry.names('tasks'))}")
    if preset is not None:
        presets: Mapping[str, Any] = getattr(registry.load("tasks", merged["task"]), "presets", {})
        if preset not in presets:
            hint, names = did_you_mean(preset, presets) or ".", ", ".join(presets) or "none"
            raise UserError(f"{merged['task']} has no preset {preset!r}{hint} Known: {names}")
        base = dict(presets[preset])
        merged = _merge(base, merged)
    made: Task = registry.build("tasks", merged["task"], merged.get("options"))
    if is_dataclass(made):  # every option, so that the file says what was run whatever the defaults become
        merged["options"] = {field.name: getattr(made, field.name) for field in fields(made) if field.init}
    recipe = made.recipe.model_dump()
    if "arms" in (base.get("recipe") or {}):  # these are all there are
        del recipe["arms"], recipe["more"]
    return validate(merged | {"recipe": _merge(recipe, merged.get("recipe", {}))}), made


def choose_arms(config: RunConfig, names: str | None, method: Mapping[str, Any]) -> RunConfig:
    """The configuration with the arms that were asked for.

    Args:
        config: complete.
        names: ``a,b,c`` takes these arms, ``all`` those as well that are there for the asking; None takes the usual
            ones.
        method: rule, selector, reference_scale of an arm of the user's, ``steered``; it then stands beside the arms
            that do without the reference, in place of the others.

    Raises:
        UserError: an arm that does not exist, or that cannot be.
    """
    recipe = config.recipe.model_dump()
    arms = recipe["arms"]
    if method:
        plain = {name: arm for name, arm in arms.items() if not arm["subtract"] and arm["selector"] is None}
        if registry.parse(method.get("rule", ""))[0] == AUTO:
            selector = {"selector": method["selector"]} if "selector" in method else {}
            arms = plain | {AUTO: arms[recipe["baseline"]] | {"base": method["rule"]} | selector}
        else:
            arms = plain | {STEERED: _steered_arm(arms, method)}
    if names is not None:
        arms |= recipe["more"]
    if names is not None and names.strip() != "all":
        chosen = [name.strip() for name in names.split(",") if name.strip() not in ("", "reference")]
        existing = f"Known: reference, {', '.join(arms)}"
        if not names.strip(" ,"):
            raise UserError(f"--arms takes names, a,b,c, got {names!r}. {existing}")
        for name in chosen:
            if name not in arms:
                raise UserError(f"no arm is named {name!r}{did_you_mean(name, arms) or '.'} {existing}")
        arms = {name: arms[name] for name in chosen}
    baseline = recipe["baseline"] if recipe["baseline"] in arms else next(iter(arms), "")
    return validate(config.model_dump() | {"recipe": recipe | {"arms": arms, "more": {}, "baseline": baseline}})


def _steered_arm(arms: Mapping[str, dict[str, Any]], method: Mapping[str, Any]) -> dict[str, Any]:
    """The user's arm: the first steered one's method, but for what was typed."""
    first = next((arm for arm in arms.values() if arm["subtract"]), {})
    arm = {name: first[name] for name in ("rule", "reference_scale", "gamma") if name in first} | dict(method)
    scale = arm.get("reference_scale", "auto")
    try:
        arm["reference_scale"] = scale if scale == "auto" else float(scale)
    except ValueError:
        raise UserError(f"--reference-scale is auto or a number of at least 0, got {scale!r}") from None
    if set(method) == {"selector"}:
        arm["subtract"] = False  # one method at a time: the reference chooses, and does not weigh as well
    return arm


def validate(settings: Mapping[str, Any]) -> RunConfig:
    """Checks every setting, rules and selectors by building them, with one line for what is wrong."""
    config = _checked(settings)
    for arm in config.recipe.arms.values():
        registry.build("rules", arm.rule)
        if arm.base is not None:
            registry.build("rules", arm.base)
        if arm.selector is not None:
            registry.build("selectors", arm.selector)
    return config


def _checked(settings: Mapping[str, Any]) -> RunConfig:
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    recipe = config.recipe
    if recipe.arms and recipe.baseline not in recipe.arms:
        raise UserError(f"recipe.baseline is {recipe.baseline!r}, which is no arm: {', '.join(recipe.arms)}")
    for name in recipe.arms:
        if name == "reference" or not re.fullmatch(r"[\w-]{1,100}", name):
            raise UserError(
                f"an arm cannot be named {name!r}: use letters, digits, - and _, at most 100 ('reference' is taken)"
            )
    return config


def text(config: RunConfig) -> str:
    """The configuration as YAML; ``steer run --config`` runs it again."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def load(path: Path) -> RunConfig:
    """Reads the config.yaml of a run folder; builds no task, rule or selector, which is for ``resolve``."""
    return _checked(read(path))


def elastic(task: "Task") -> set[str]:
    """Settings that may change when a run resumes: where and how fast it runs, not what is computed.

    Of a task they are the options whose dataclass field has ``metadata={"elastic": True}``.
    """
    how = ("micro_batch", "grad_checkpointing", "parallel", "checkpoint_minutes", "keep_checkpoints")
    options = fields(task) if is_dataclass(task) else ()
    free = {"device", "threads"} | {f"recipe.{name}" for name in how}
    return free | {f"options.{option.name}" for option in options if option.metadata.get("elastic")}


def differences(old: RunConfig, new: RunConfig, free: Collection[str] = ()) -> list[str]:
    """Settings that two configurations do not share, as ``recipe.steps 100 -> 200``, but for those that are free."""
    before, after = (_by_path(config.model_dump()) for config in (old, new))
    names = sorted((before.keys() | after.keys()) - set(free))
    return [f"{n} {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _by_path(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Single values by their dotted paths."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix[:-1]: settings}
    return {path: x for name, value in settings.items() for path, x in _by_path(value, f"{prefix}{name}.").items()}


def _expanded(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one origin; a task that is written as a constructor call gives its name and options."""
    layer = {name: value for name, value in layer.items() if value is not None}
    for group in ("options", "recipe"):
        if not isinstance(layer.get(group, {}), Mapping):
            raise UserError(f"{group} is a group of settings, such as {group}.name=value; got {layer[group]!r}")
    if "task" in layer:
        name, arguments = registry.parse(str(layer["task"]))
        return _merge({"options": arguments}, layer) | {"task": name}
    return layer


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, later ones winning; of a group and a single value, which do not mix, the later one stands."""
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(dict(layer)) for layer in layers))
        return dict(OmegaConf.to_container(merged))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(f"these settings cannot be read: {' '.join(str(error).split())}") from None
    except TypeError:
        raise UserError("a list cannot replace a group of settings: write recipe.arms.NAME.rule=uniform say") from None


def read(file: Path) -> dict[str, Any]:
    """The settings of a YAML file, as they stand there.

    Raises:
        UserError: it is not there, no YAML, too large or too deep, or computes something by a resolver.
    """
    try:
        text = atomic_files.read_text(file, LARGEST)
    except FileNotFoundError:
        raise UserError(f"no configuration file at {file}") from None
    except OSError as error:
        raise UserError(f"{file} is no readable YAML file: {error.strerror}") from None
    where = f"{file} is no readable YAML file"
    if text.count("${") > MOST_REFERENCES:
        raise UserError(f"{where}: more than {MOST_REFERENCES} references ${{...}}")
    return _plain(lambda: OmegaConf.create(text), where, file)


def _dotted(sets: Sequence[str]) -> dict[str, Any]:
    for text in sets:
        if "=" not in text:
            raise UserError(f"--set takes a.b=c, got {text!r}; write --set recipe.steps=100 say")
    return _plain(lambda: OmegaConf.from_dotlist(list(sets)), f"--set {' '.join(sets)}")


def _plain(make: Callable[[], Any], where: str, source: Path | None = None) -> Any:
    """Settings as plain values, references such as ``${recipe.steps}`` replaced by what they stand for.

    Args:
        make: reads them. OmegaConf refuses aliases that unfold to more than 10,000 values.
        where: they are, for the message.
        source: the file, where its author is not whoever typed the command.
    """
    try:
        config = make()
        if source is not None:
            refuse_code(OmegaConf.to_container(config), source, names=False)
        settings = OmegaConf.to_container(config, resolve=True)
        repr(settings)  # an integer of more digits than Python writes is an error now, not in some message
    except UserError:
        raise
    except Exception as error:  # what reading YAML raises has no common type
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{where}: {reason or 'no settings'}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{where}: it holds no settings: write lines such as 'task: digits'")
    return {str(name): with_present_names(x) if name == "recipe" else x for name, x in settings.items()}


def _explain(error: ValidationError) -> str:
    """One line: where, what was got, what is allowed, and the nearest known name for an unknown one."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return registry.explain(error)
    *path, last = (str(part) for part in first["loc"])
    fields = list((Arm if "arms" in path or "more" in path else Recipe if path else RunConfig).model_fields)
    where = f"in {'.'.join(path)}" if path else "at the top"
    return f"no setting is named {last!r} {where}{did_you_mean(last, fields) or '.'} Known: {', '.join(fields)}"
