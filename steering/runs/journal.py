"""metrics.jsonl: one line a record, appended while a run goes on, cut back when it resumes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from steering import atomic_files
from steering.errors import RunError

Record = dict[str, Any]


class Journal:
    """The figures of all arms and seeds of a run, in one file.

    Args:
        path: of metrics.jsonl; made if it is not there.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            atomic_files.write(path, "")

    def records(self) -> list[Record]:
        """All whole lines; a line that a kill cut short is left out."""
        records = []
        for line in self.path.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return records

    def add(self, record: Record) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}. The last checkpoint is kept") from None

    def cut(self, arm: str, seed: int, step: int) -> None:
        """Forgets what one arm and seed recorded after ``step``, since it is about to happen again."""

        def kept(r: Record) -> bool:
            return (r["arm"], r["seed"]) != (arm, seed) or r["step"] <= step

        text = "".join(json.dumps(r) + "\n" for r in self.records() if kept(r))
        if text != self.path.read_text():
            atomic_files.write(self.path, text)
