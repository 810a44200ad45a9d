"""Names to plugins: ``kl(rho=80)`` becomes KL(rho=80), whoever wrote it."""

import ast
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from steering.errors import UserError, did_you_mean, shown

Kind = Literal["rules", "selectors", "tasks"]
_BUILT_IN: dict[Kind, dict[str, str]] = {
    "rules": {
        "auto": "steering.rules.auto:Auto",
        "chi_square": "steering.rules.chi_square:ChiSquare",
        "cvar": "steering.rules.cvar:CVaR",
        "global_contrastive": "steering.rules.global_contrastive:GlobalContrastive",
        "individual": "steering.rules.individual:Individual",
        "info_nce": "steering.rules.info_nce:InfoNCE",
        "kl": "steering.rules.kl:KL",
        "uniform": "steering.rules.uniform:Uniform",
    },
    "selectors": {
        "boltzmann": "steering.selectors.by_score:Boltzmann",
        "jest": "steering.contrastive.jest:Jest",
        "reference_only": "steering.selectors.by_score:ReferenceOnly",
        "top_k": "steering.selectors.by_score:TopK",
        "top_loss": "steering.selectors.by_score:TopLoss",
        "uniform": "steering.selectors.by_score:Uniform",
    },
    "tasks": {},
}
# What a plugin must have: one of these sets, the first of which is asked for in messages. Methods are looked for in the
# class before anything of it is called, attributes, which a constructor may set, afterwards.
_METHODS: dict[Kind, list[str]] = {
    "rules": ["dual blend weights", "at objective"],
    "selectors": ["__call__"],
    "tasks": ["seeded target reference stream losses evaluate"],
}
_ATTRIBUTES: dict[Kind, list[str]] = {
    "rules": ["width normalised", "at objective"],
    "selectors": ["keep uses_reference"],
    "tasks": ["size rows recipe metrics"],
}
LONGEST = 20_000  # characters of a constructor call


def names(kind: Kind) -> list[str]:
    """Names that can be used without a module path: built in, or entry points of installed packages."""
    return sorted({*_BUILT_IN[kind], *(point.name for point in entry_points(group=f"steering.{kind}"))})


def load(kind: Kind, name: str) -> Any:
    """Finds a plugin.

    Args:
        kind: rules, selectors or tasks.
        name: ``package.module:Name`` (nothing to install; the working directory is searched too), the name of an entry
            point in the group ``steering.<kind>``, or of a rule or selector that is built in.

    Raises:
        UserError: no such plugin.
    """
    if ":" in name:
        return _from_path(kind, name)
    for point in entry_points(group=f"steering.{kind}", name=name):
        return _imported(name, point.load)
    if name in _BUILT_IN[kind]:
        return _from_path(kind, _BUILT_IN[kind][name])
    choice = names(kind)
    raise UserError(
        f"no {kind[:-1]} is named {name!r}{did_you_mean(name, choice) or '.'} Known: {', '.join(choice) or 'none'}; "
        f"one of your own is named as package.module:Name"
    )


def build(kind: Kind, text: str, options: Mapping[str, Any] | None = None) -> Any:
    """Makes a plugin from its constructor call, ``kl(temperature=0.5)``, and further options.

    Raises:
        UserError: unknown plugin or argument, wrong type or range, or text that is no constructor call.
    """
    name, arguments = parse(text)
    cls = load(kind, name)
    made_of = cls if inspect.isclass(cls) else _returned(cls)
    members = {
        name for base in inspect.getmro(made_of)[:-1] for name in (*vars(base), *vars(base).get("__annotations__", {}))
    }
    _must_have(kind, name, _METHODS, members.__contains__)
    arguments |= options or {}
    try:
        allowed = list(inspect.signature(cls).parameters)
        for argument in arguments:
            if argument not in allowed:
                hint, takes = did_you_mean(str(argument), allowed) or ".", ", ".join(allowed) or "no arguments"
                raise UserError(f"{name} has no {shown(argument)[1:-1]}{hint} It takes {takes}")
        made = _made(cls, arguments)
    except UserError:
        raise
    except ValidationError as error:
        from_constructor = error.errors()[0]["type"] == "value_error"  # whose message names the plugin itself
        raise UserError(explain(error) if from_constructor else f"{name}: {explain(error)}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None
    _must_have(kind, name, _ATTRIBUTES, lambda member: inspect.getattr_static(made, member, None) is not None)
    return made


def _returned(function: Any) -> type:
    """The class that a function says it returns, ``-> Task`` say, object if it does not."""
    try:
        returned = get_type_hints(inspect.unwrap(function)).get("return")
    except Exception:  # annotations may name anything
        returned = None
    return returned if inspect.isclass(returned) else object


def _must_have(kind: Kind, name: str, needs: Mapping[Kind, list[str]], has: Callable[[str], bool]) -> None:
    missing = [[member for member in members.split() if not has(member)] for members in needs[kind]]
    if all(missing):
        raise UserError(
            f"{name} is no {kind[:-1]}: it has no {', '.join(missing[0])}. Name a class that has them, or a function "
            "that is annotated to return one"
        )


def _made(cls: Any, arguments: dict[str, Any]) -> Any:
    """A plugin of these arguments; those of a dataclass are checked against its annotations."""
    if "__dataclass_fields__" in vars(cls):  # a child of one may have a constructor of its own
        with suppress(PydanticSchemaGenerationError):  # a field of a type that pydantic does not know
            return TypeAdapter(cls).validate_python(arguments)
    return cls(**arguments)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Splits ``name(key=value, ...)`` into the name and its literal arguments; nothing is evaluated."""
    name, bracket, rest = text.strip().partition("(")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes, say
            call = ast.parse(f"f({rest[:LONGEST]}" if bracket else "f()", mode="eval").body
        match call:
            case ast.Call(func=ast.Name(), args=[], keywords=pairs) if all(pair.arg for pair in pairs):  # no **
                values = {str(pair.arg): _literal(pair.value) for pair in pairs}
                if len(values) == len(pairs):  # none twice
                    return name.strip(), values
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # the last of brackets in brackets
        pass
    raise UserError(
        f"{shown(text, 200)} is no constructor call: write name or name(argument=value, ...) with plain values"
    )


def _literal(node: ast.expr) -> Any:
    """A plain value, where true and false are written as in Python or as in YAML."""
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    return ast.literal_eval(node)


def summary(kind: Kind, name: str) -> str:
    """The first line of a plugin's documentation, or why there is none to show."""
    try:
        return (inspect.getdoc(load(kind, name)) or "").partition("\n")[0]
    except UserError as error:
        return str(error)


def explain(error: ValidationError) -> str:
    """One line for a mistake that pydantic reports: where, what was got, what is allowed."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    path = ".".join(str(part) for part in first["loc"] if part != "constrained-float")  # the number of a union
    got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
    return f"{path}: {message[0].lower() + message[1:]}{got}"


def _from_path(kind: Kind, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UserError(f"{name!r} is no {kind[:-1]}: one of your own is named as package.module:Name")
    # At the end: a file that lies here is no part of anything installed, whatever its name.
    if name not in _BUILT_IN[kind].values() and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    plugin = getattr(_imported(name, lambda: import_module(module_name)), attribute, None)
    if not callable(plugin):
        raise UserError(f"{name}: {module_name} has no {attribute} to use as a {kind[:-1]}")
    return plugin


def _imported(name: str, load: Callable[[], Any]) -> Any:
    """What ``load`` imports; a plugin that cannot be imported is a UserError."""
    try:
        return load()
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: cannot import {error.name}; is it installed, or in this folder?") from None
    except Exception as error:  # anything may happen in there
        raise UserError(f"{name}: cannot be imported ({type(error).__name__}: {error})") from None
