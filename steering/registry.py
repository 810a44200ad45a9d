"""Names to plugins: ``kl(rho=80)`` becomes KL(rho=80), whoever wrote it."""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from steering.errors import UserError, did_you_mean

Kind = Literal["rules", "selectors", "tasks"]
_PROTOCOLS = {"rule", "selector", "solve"}


def known(kind: Kind) -> list[str]:
    """Names that can be used without a module path: our own and those of installed packages."""
    own = [] if kind == "tasks" else (Path(__file__).parent / kind).glob("*.py")
    names = {path.stem for path in own if not path.stem.startswith("_")} - _PROTOCOLS
    return sorted(names | {point.name for point in entry_points(group=f"steering.{kind}")})


def load(kind: Kind, name: str) -> Any:
    """Finds a plugin.

    Args:
        kind: rules, selectors or tasks.
        name: ``package.module:Name`` (nothing to install; the working directory is searched too), the name of
            one of our modules, or of an entry point in the group ``steering.<kind>``.

    Raises:
        UserError: no such plugin.
    """
    if ":" in name:
        return _from_path(kind, name)
    for point in entry_points(group=f"steering.{kind}", name=name):
        return point.load()
    if name in known(kind):
        module = import_module(f"steering.{kind}.{name}")
        return getattr(module, module.__all__[0])
    raise UserError(
        f"no {kind[:-1]} is named {name!r}{did_you_mean(name, known(kind))} Known: {', '.join(known(kind))}; "
        f"one of your own is named as package.module:Name"
    )


def build(kind: Kind, text: str, options: Mapping[str, Any] | None = None) -> Any:
    """Makes a plugin from its constructor call, ``kl(temperature=0.5)``, and further options.

    Raises:
        UserError: unknown plugin or argument, wrong type or range, or text that is no constructor call.
    """
    name, arguments = parse(text)
    cls = load(kind, name)
    arguments |= options or {}
    allowed = [p for p in inspect.signature(cls).parameters if p != "self"]
    for argument in arguments:
        if argument not in allowed:
            takes = ", ".join(allowed) or "no arguments"
            raise UserError(f"{name} has no {argument}{did_you_mean(argument, allowed)} It takes {takes}")
    try:
        return TypeAdapter(cls).validate_python(arguments) if is_dataclass(cls) else cls(**arguments)
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error)}") from None
    except TypeError as error:
        raise UserError(f"{name}: {error}") from None


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Splits ``name(key=value, ...)`` into the name and its literal arguments; nothing is evaluated."""
    name, bracket, rest = text.strip().partition("(")
    try:
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return name.strip(), {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError, AssertionError):
        raise UserError(
            f"{text!r} is no constructor call: write name or name(argument=value, ...) with plain values"
        ) from None


def summary(kind: Kind, name: str) -> str:
    """The first line of a plugin's documentation."""
    return (inspect.getdoc(load(kind, name)) or "").partition("\n")[0]


def explain(error: ValidationError) -> str:
    """One line for what pydantic found wrong: where, what was got, what is allowed."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return words
    return f"{place}: {words[0].lower() + words[1:]}, got {first['input']!r}"


def _from_path(kind: Kind, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: cannot import {error.name}; is it installed, or in this folder?") from None
    except AttributeError:
        raise UserError(f"{name}: {module_name} has no {attribute} to use as a {kind[:-1]}") from None
