"""Numbers of samples from the files that other tools leave beside shards, so that they need not be counted."""

import io
import json
import os
import threading
from typing import Any

from steering.clip.data.shard_files import copy
from steering.clip.data.sources import remote


class Counts:
    """``sizes.json`` of open_clip (``{"000.tar": 10000}``) and ``000_stats.json`` of img2dataset ("successes")."""

    def __init__(self):
        self.sizes: dict[str, Any] = {}  # what sizes.json says, by folder
        self.stats: dict[str, bool] = {}  # whether a remote folder has them
        self.lock = threading.Lock()

    def tell(self, url: str) -> int | None:
        """How many samples a shard is said to hold, None if nobody says so."""
        if url.startswith("pipe:"):
            return None
        folder, _, name = url.rpartition("/") if remote(url) else (os.path.dirname(url), "", os.path.basename(url))
        with self.lock:
            if folder not in self.sizes:
                self.sizes[folder] = _json(folder, "sizes.json")
            told = self.sizes[folder]
            count = told.get(name) if isinstance(told, dict) else None
            if not _is_count(count) and remote(url) and folder not in self.stats:
                self.stats[folder] = _is_count(_successes(folder, name))  # a request for every shard would be slow
        if not _is_count(count) and self.stats.get(folder, True):
            count = _successes(folder, name)
        return count if _is_count(count) else None


def _successes(folder: str, name: str) -> Any:
    stats = _json(folder, f"{name.removesuffix('.tar')}_stats.json")
    return stats.get("successes") if isinstance(stats, dict) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
