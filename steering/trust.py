"""Whose code may run: what was typed, what is installed, what is ours. A name in a file is not a name typed."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from steering.errors import UserError, shown

_allowed = False


def allow_code(allowed: bool = True) -> None:
    """Lets code run that files name: whoever typed ``--trust-code`` trusts those who wrote them."""
    global _allowed
    _allowed = allowed


def code_is_allowed() -> bool:
    """Whether code may run that a file names and nobody typed."""
    return _allowed


def refuse_code(settings: Any, source: object, *, names: bool = True) -> None:
    """Refuses settings of a file that would run code, unless ``--trust-code`` was typed.

    That is a task, rule or selector by ``module:Name``, which is neither ours nor an entry point of something
    installed; data through ``pipe:``; and whatever a resolver of OmegaConf computes or reads, ``${oc.env:HOME}``.

    Args:
        settings: nested, before references in them are resolved.
        source: where they are from, for the message.
        names: whether plugins are built of them; otherwise only resolvers run.

    Raises:
        UserError: some of them would; the first is shown.
    """
    refused = (item for item in code_in(settings) if names or _calls_resolver(item[1]))
    first = None if _allowed else next(refused, None)
    if first is not None:
        path, text = first
        raise UserError(
            f"{source} names code that would run, {path}: {shown(text, 200)}. Of a file only what is built in or "
            "installed is taken, by its plain name: add --trust-code if you trust whoever wrote it"
        )


def code_in(settings: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Settings that would run code, with their dotted paths."""
    if isinstance(settings, Mapping | list | tuple):
        items = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        for name, value in items:
            yield from code_in(value, f"{path}.{name}" if path else str(name))
    elif isinstance(settings, str):
        plugin = path.rpartition(".")[2] in ("task", "rule", "selector") and ":" in settings.partition("(")[0]
        if plugin or _is_pipe(settings) or _calls_resolver(settings):
            yield path, settings


def _is_pipe(text: str) -> bool:
    """Whether data are read from a command, also where braces would unfold to one: ``{p,}ipe:``."""
    schemes = (part.partition(":")[0] for part in text.split("::") if ":" in part)
    return any(re.search("p.*i.*p.*e" if set("{}") & set(scheme) else r"^\s*pipe$", scheme) for scheme in schemes)


def _calls_resolver(text: str) -> bool:
    """Whether a colon stands within ``${...}``, however these are nested."""
    depth = 0
    for token in re.findall(r"\$\{|\}|:", text):
        depth = max(0, depth + {"${": 1, "}": -1}.get(token, 0))
        if token == ":" and depth:
            return True
    return False
