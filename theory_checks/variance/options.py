"""The options of ``steer variance``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """As they were typed.

    Attributes:
        target: task or run folder; None where references are given.
        refs, proxy, data, caption_field: candidate references before any training, and the pairs to judge them on.
        seeds: repetitions; of a run the first so many.
        validate: train with references of known worth and compare with what was predicted.
        sets: settings ``a.b=c``.
        out: folder of the report.
        device: auto, cpu, cuda.
        pairs: most image-text pairs.
        workers: processes that read pictures ahead.
        command: what the user typed.
    """

    target: str | None
    refs: list[str]
    proxy: str | None
    data: str | None
    caption_field: str | None
    seeds: int | None
    validate: bool
    sets: list[str]
    out: Path | None
    device: str
    pairs: int
    workers: int
    command: str
