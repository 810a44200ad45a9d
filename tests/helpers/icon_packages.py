"""Packages in the form of @iconify/json, with drawings of our own."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHAPES = {
    "star": '<path d="M12 2l3 7h7l-6 5 3 8-7-5-7 5 3-8-6-5h7z"/>',
    "heart": '<path d="M12 21L2 10a5 5 0 0 1 10-4 5 5 0 0 1 10 4z"/>',
    "house": '<path d="M2 12L12 3l10 9h-3v9H5v-9z"/>',
    "moon": '<path d="M15 2a10 10 0 1 0 7 14A9 9 0 0 1 15 2z"/>',
    "drop": '<path d="M12 2l6 9a7 7 0 1 1-12 0z"/>',
    "flag": '<path d="M4 2h2v20H4zM7 3h13l-4 5 4 5H7z"/>',
}
PLACES = {"top": "translate(6)", "left": "translate(0 6)", "right": "translate(12 6)", "bottom": "translate(6 12)"}
STYLES = {"outline": 'fill="none" stroke="currentColor"', "bold": 'stroke="currentColor"', "": ""}


def drawings(scale: float = 0.5) -> dict[str, dict[str, Any]]:
    """72 icons: every shape at every place in every style."""
    return {
        "-".join(word for word in (shape, place, style) if word): {
            "body": f'<g transform="{where} scale({scale})" {how}>{body}</g>'
        }
        for shape, body in SHAPES.items()
        for place, where in PLACES.items()
        for style, how in STYLES.items()
    }


def icon_set(prefix: str, icons: Mapping[str, Any] | None = None, **about: Any) -> dict[str, Any]:
    """A set under MIT, by an author of its own; ``about`` goes to its info or, if it is a field of a set, there."""
    spdx = about.pop("spdx", "MIT")
    top = {key: about.pop(key) for key in ("categories", "width", "height") if key in about}
    info = {"name": prefix.title(), "author": {"name": f"{prefix}'s author", "url": "https://example.org"}}
    info |= {"license": {"title": spdx, "spdx": spdx, "url": "https://example.org/LICENSE"}, **about}
    return {
        "prefix": prefix,
        "info": info,
        "icons": drawings() if icons is None else icons,
        "width": 24,
        "height": 24,
    } | top


def write_package(path: Path, sets: list[dict[str, Any]], name: str = "@iconify/json", **members: bytes | str) -> Path:
    """A .tgz as ``npm pack`` writes it; ``members`` are further ones or other contents."""
    usual = {f"package/json/{icons['prefix']}.json": json.dumps(icons) for icons in sets}
    usual |= {"package/package.json": json.dumps({"name": name, "version": "1.2.3"})}
    with tarfile.open(path, "w:gz") as tar:
        for member, content in (usual | members).items():
            data = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path
