"""Pages: HTML that needs nothing else, neither network nor script."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


def page(template: Path, **values: Any) -> str:
    """The text of a page whose template extends ``page.html``."""
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined)
    environment.filters["image"] = _image
    return environment.get_template(template.name).render(**values)


def facts(groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of a machine as rows of a table; a group becomes one row."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, list):
            return ", ".join(map(str, value)) or "none"
        return "none" if value is None else str(value)

    return [(key, words(value)) for key, value in groups.items()]


def _image(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
