"""A run in numbers: summary.json when it is finished, metrics.jsonl on the way. No torch in here."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from steering import atomic_files
from steering.errors import RunError
from steering.runs.config import RunConfig, differences, read
from steering.runs.statistics import Interval, interval, paired_difference
from steering.settings import Metric, Strict


class _Record(Strict):
    """Not-a-number is kept as a word, which JSON proper has no number for."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Result(_Record):
    """One arm trained with one seed."""

    seed: int  # repetition; equal seeds are paired between arms
    metrics: dict[str, float]  # what Task.evaluate returned at the end
    samples: int = 0  # samples in gradient steps, counted as often as they were used
    candidates: int = 0  # samples that were scored to choose those; equal to samples without a selector
    # Mean of every fact over the samples that were trained on (wrong: 0.3).
    facts: dict[str, float] = Field(default_factory=dict)
    cpu_seconds: float = 0.0  # of training, without evaluation
    scale: float | None = None  # last scale of the reference loss
    effective: float | None = None  # mean effective sample size of the weights, as a share of the batch
    variance_ratio: float | None = None  # Var(loss - scale * reference) / Var(loss) of the training batches
    cautions: list[str] = Field(default_factory=list)  # what the engine warns of, for this arm and seed
    notes: list[str] = Field(default_factory=list)  # what was estimated for this arm and seed, in sentences
    seconds: float = 0.0  # wall-clock time since the arm was begun or, after an interruption, taken up again
    # How often a sample could not be used, by reason, in the whole run up to here.
    skipped: dict[str, int] = Field(default_factory=dict)


class ArmSummary(_Record):
    """One row of the comparison."""

    kind: Literal["reference", "trained"] = "trained"  # reference is only evaluated, everything else is trained
    rule: str | None = None  # weights of the losses, as a constructor call
    selector: str | None = None  # choice of samples, as a constructor call; None takes all
    subtract: bool = False  # whether the rule saw the loss minus the reference's
    distill: float = 0.0  # weight of the distillation from the reference, or from a teacher
    selector_uses_reference: bool = True  # False for a selector that looks at the target's loss alone
    results: list[Result]  # one for every finished seed

    @property
    def subtracts(self) -> bool:
        """Whether the weights depend on the reference; uniform ones ignore what is subtracted."""
        return self.subtract and self.rule is not None and self.rule.partition("(")[0].strip() != "uniform"

    @property
    def steered(self) -> bool:
        """Whether the reference had any say in training, by the weights or by the choice of samples."""
        selects = self.selector is not None and self.selector_uses_reference
        return self.kind == "trained" and (self.subtracts or selects or self.distill > 0)

    def by_seed(self, metric: str) -> dict[int, float]:
        """Values of one metric, by seed, in the order of the seeds."""
        return dict(sorted((r.seed, r.metrics[metric]) for r in self.results if metric in r.metrics))

    def interval(self, metric: str) -> Interval | None:
        """Mean of one metric over seeds; None where there is no result."""
        values = list(self.by_seed(metric).values())
        return interval(values) if values else None


class Summary(_Record):
    """A whole run: every arm with every seed, and how to read the numbers."""

    task: str  # constructor call of the task
    command: str  # what was typed
    started: str  # ISO time
    seconds: float  # wall-clock time of all arms and seeds together
    baseline: str  # the arm that differences are taken against
    metrics: dict[str, Metric]  # how to read each metric; the first one is the headline
    arms: dict[str, ArmSummary]  # by name, in the order of the tables
    cautions: list[str] = Field(default_factory=list)  # sentences of the engine for whoever reads the numbers
    skipped: dict[str, int] = Field(default_factory=dict)  # how often a sample could not be used, by reason

    @property
    def headline(self) -> str:
        """Name of the metric that decides."""
        return next(iter(self.metrics))

    @property
    def seeds(self) -> int:
        """Repetitions of the arm that has most."""
        return max((len(arm.results) for arm in self.arms.values()), default=0)

    def gain(self, arm: str, against: str, metric: str | None = None) -> Interval | None:
        """Paired difference over the seeds both have, positive where ``arm`` is better; None without any."""
        metric = metric or self.headline
        a, b = self.arms[arm].by_seed(metric), self.arms[against].by_seed(metric)
        shared = [seed for seed in a if seed in b]
        if not shared:
            return None
        return paired_difference(
            [a[seed] for seed in shared], [b[seed] for seed in shared], self.metrics[metric].better
        )


def finished(folder: Path, config: RunConfig | None = None) -> Summary | None:
    """The summary of a run of which every part is there as it was summed up, and the report; else None.

    Args:
        folder: of a run, perhaps.
        config: that it must have to the letter; None for whatever it has.
    """
    try:
        written = RunConfig.model_validate(read(folder / "config.yaml"))
        summary = Summary.model_validate_json(atomic_files.read_text(folder / "summary.json"))
        parts = [
            atomic_files.read_text(folder / "arms" / name / f"seed{result.seed}" / "result.json").strip()
            == result.model_dump_json(indent=1)
            for name, arm in summary.arms.items()
            for result in arm.results
        ]
    except (OSError, ValueError):
        return None
    arms = ["reference", *written.recipe.arms]
    complete = list(summary.arms) == arms and len(parts) == len(arms) * written.recipe.seeds
    same = config is None or not differences(written, config)
    return summary if complete and same and all(parts) and (folder / "report.html").exists() else None


class Journal:
    """The figures of all arms and seeds, a line a record: appended while a run goes on, cut back when it resumes.

    Args:
        path: of metrics.jsonl; made if it is not there.
    """

    def __init__(self, path: Path):
        self.path = path
        if not atomic_files.is_plain(path):
            raise RunError(f"{path} is no file: delete it, and the run goes on without what it holds")
        if not path.exists():
            atomic_files.write(path, "")

    def records(self) -> list[dict[str, Any]]:
        """All lines that are records; one that a kill cut short is left out."""
        records = []
        for line in self._text().split("\n"):
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and {"arm", "seed", "step"} <= record.keys():
                    records.append(record)
        return records

    def _text(self) -> str:
        return atomic_files.read_text(self.path, 4_000_000_000)

    def add(self, record: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}. The last checkpoint is kept") from None

    def cut(self, arm: str, seed: int, step: int) -> None:
        """Forgets what one arm and seed recorded after ``step``, since it is about to happen again."""
        kept = [r for r in self.records() if (r["arm"], r["seed"]) != (arm, seed) or r["step"] <= step]
        text = "".join(json.dumps(r) + "\n" for r in kept)
        if text != self._text():
            atomic_files.write(self.path, text)
