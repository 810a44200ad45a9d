"""Numbers of samples from the files that other tools leave beside shards, so that they need not be counted."""

import io
import json
import os
import threading
from typing import Any

from steering.clip.data.shard_files import copy
from steering.clip.data.sources import remote


class ShardCounts:
    """``sizes.json`` of open_clip (``{"000.tar": 10000}``) and ``000_stats.json`` of img2dataset ("successes")."""

    def __init__(self):
        self._sizes: dict[str, Any] = {}  # contents of sizes.json, by folder
        self._has_stats: dict[str, bool] = {}  # by remote folder
        self._lock = threading.Lock()

    def count(self, url: str) -> int | None:
        """The number of samples of a shard according to a file beside it, None without one."""
        if url.startswith("pipe:"):
            return None
        folder, _, name = url.rpartition("/") if remote(url) else (os.path.dirname(url), "", os.path.basename(url))
        with self._lock:
            if folder not in self._sizes:
                self._sizes[folder] = _json(folder, "sizes.json")
            count = _field(self._sizes[folder], name)
            if count is None and remote(url) and folder not in self._has_stats:
                self._has_stats[folder] = _stats(folder, name) is not None  # a request for every shard would be slow
        return _stats(folder, name) if count is None and self._has_stats.get(folder, True) else count


def _stats(folder: str, name: str) -> int | None:
    return _field(_json(folder, f"{name.removesuffix('.tar')}_stats.json"), "successes")


def _field(content: Any, name: str) -> int | None:
    """A count in a JSON object, None if there is no such object or it is no count."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _json(folder: str, name: str) -> Any:
    """A JSON file, None if there is none that can be read."""
    try:
        if remote(folder):
            stream = io.BytesIO()
            copy(f"{folder}/{name}", stream)
            return json.loads(stream.getvalue())
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
