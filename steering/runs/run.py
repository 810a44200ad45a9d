"""A run: every arm and seed trained or picked up where it stopped, then one summary and one report."""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from steering import atomic_files, registry
from steering.distributed import rank
from steering.errors import Elsewhere, RunError, UserError
from steering.references.store import ReferenceLosses
from steering.reports.environment import environment
from steering.runs import config as configs
from steering.runs.config import RunConfig
from steering.runs.journal import Journal
from steering.runs.processes import on_rank_zero
from steering.runs.progress import Interrupted, Interrupts, Watch
from steering.runs.report import write_report
from steering.runs.summary import ArmSummary, Result, Summary
from steering.task import Exhibit, Task
from steering.training import loop
from steering.training.step import candidates_needed

REFERENCE = "reference"
LOCK = ".lock"  # held by the process that is at work in the folder


class Stopped(RunError):
    """The user or the system asked the run to end; everything is on disk.

    Attributes:
        signal: number of the signal that was received.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@dataclass
class Run:
    """One run in its folder.

    Args:
        config: complete, as ``config.resolve`` gives it.
        task: the task it names.
        folder: made by this run, or of the same configuration, which is then continued.
        console: for progress and tables.
        command: what the user typed, for the records.
        here: the device of this process; by default as the configuration says.
        observe: called after every step with the name of the arm and its training, which it must leave as it is.
    """

    config: RunConfig
    task: Task
    folder: Path
    console: Console
    command: list[str]
    here: torch.device | None = None
    observe: Callable[[str, loop.Training], None] = lambda name, training: None

    def __post_init__(self):
        self.recipe = self.config.recipe
        self.device = self.here or device(self.config.device)
        self._last: tuple[Task, ReferenceLosses] | None = None
        self._known: tuple[ReferenceLosses, dict[str, float]] | None = None

    def execute(self) -> Summary:
        """Trains what is not trained yet, then writes summary.json and report.html.

        Raises:
            UserError: the folder is another run's, or some process is at work in it.
        """
        torch.set_num_threads(self.config.threads)
        if not on_rank_zero(self.folder.exists):
            _ = self.task.metrics
            reference = self._drawn(0)[1]
            _ = reference.model  # what cannot be loaded or trained leaves no folder behind
            if any(arm.distill for arm in self.recipe.arms.values()):
                _ = reference.teacher.model
            for arm in self.recipe.arms.values():
                candidates_needed(arm, self.recipe, self.task.size)
        self._lock: FileLock | None = None
        try:
            on_rank_zero(self._enter)
            summary = self._execute()
            on_rank_zero(lambda: None)  # the first one has written the report
            return summary
        except OSError as error:  # of the lock, the plots, or the task's own files
            raise RunError(f"cannot read or write {error.filename or self.folder}: {error.strerror}") from None
        finally:
            if self._lock is not None:
                self._lock.release()

    def _enter(self) -> None:
        """Makes the run folder, or makes sure that it is this run's, and locks it."""
        self._check_folder()
        self._lock = FileLock(atomic_files.make_folder(self.folder) / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is at work in {self.folder}: wait for it, or choose another --out"
            ) from None
        self._open()

    def _execute(self) -> Summary:
        journal = Journal(self.folder / "metrics.jsonl")
        results: dict[str, list[Result]] = {name: [] for name in (REFERENCE, *self.recipe.arms)}
        total = self.recipe.steps * len(self.recipe.arms) * self.recipe.seeds
        interrupts = Interrupts()
        try:
            with Watch(self.console, total_steps=total) as watch, interrupts:
                for seed in range(self.recipe.seeds):
                    task, reference = self._drawn(seed)
                    results[REFERENCE].append(self._reference(task, reference, seed, watch))
                    for name in self.recipe.arms:
                        results[name].append(self._arm(name, seed, task, reference, journal, watch, interrupts))
        except Interrupted:
            raise self._stopped("stopped between two arms", interrupts) from None
        summary = self._summary(results)
        if rank() == 0:
            atomic_files.write(self.folder / "summary.json", summary.model_dump_json(indent=1))
            write_report(self.folder, summary, journal.records(), self._exhibits())
        return summary

    def _check_folder(self) -> None:
        """Makes sure that the run folder is new, empty, or of the same configuration."""
        path = self.folder / "config.yaml"
        if path.exists():
            changed = configs.differences(configs.load(path), self.config, configs.elastic(self.task))
            if changed:
                raise UserError(
                    f"{self.folder} holds a run of another configuration ({'; '.join(changed[:3])}): choose another "
                    f"--out, or continue that run with --resume {self.folder}"
                )
        elif self.folder.exists() and (not self.folder.is_dir() or {p.name for p in self.folder.iterdir()} - {LOCK}):
            raise UserError(f"{self.folder} is no run folder (it has no config.yaml) nor empty: choose another --out")

    def _open(self) -> None:
        """Writes down what is run; what was typed first and when stays."""
        configs.save(self.config, self.folder / "config.yaml")
        if not (self.folder / "environment.json").exists():
            said = {"command": shlex.join(self.command), "started": datetime.now(UTC).isoformat(timespec="seconds")}
            atomic_files.write_json(self.folder / "environment.json", said | environment())
        if not (self.folder / "metrics.jsonl").exists():
            atomic_files.write(self.folder / "metrics.jsonl", "")
        self.console.print(f"run folder: {self.folder}", markup=False, highlight=False)

    def _drawn(self, seed: int) -> tuple[Task, ReferenceLosses]:
        """The task of one repetition and its reference's losses, kept while the data stay the same."""
        task = self.task.seeded(seed)
        if self._last is None or self._last[0] is not task:
            folder = self._place(REFERENCE, seed) / "losses"
            self._last = (task, ReferenceLosses(task, self.device, folder, micro_batch=self.recipe.micro_batch))
        return self._last

    def _reference(self, task: Task, reference: ReferenceLosses, seed: int, watch: Watch) -> Result:
        """The reference's own metrics, found out once for as long as the data stay the same."""

        def look() -> Result:
            if self._known is None or self._known[0] is not reference:
                watch.note("evaluating the reference")
                self._known = (reference, on_rank_zero(lambda: loop.evaluate(task, reference.model)))
            return Result(seed=seed, metrics=self._known[1], samples=0, candidates=0)

        return self._once(REFERENCE, seed, look)

    def _arm(self, name, seed, task, reference, journal: Journal, watch: Watch, interrupts: Interrupts) -> Result:
        """One arm of one repetition, trained or read back."""

        def train() -> Result:
            arm = self.recipe.arms[name]
            training = loop.Training(task, arm, self.recipe, reference=reference, seed=seed, device=self.device)
            path = self._place(name, seed) / "checkpoint.pt"
            done = on_rank_zero(lambda: _steps_done(path))
            if rank() == 0:
                journal.cut(name, seed, done)
            watch.begin(f"{name} (seed {seed})", self.recipe.steps, done)
            evaluation: dict[str, float] = {}

            def record(figures: dict[str, Any]) -> None:
                evaluation.update(figures.get("evaluation", {}))
                if "loss" in figures:
                    watch.step(figures["step"], figures["samples"], figures["loss"])
                    self.observe(name, training)
                if rank() == 0 and ("evaluation" in figures or self._logged(figures["step"])):
                    journal.add({"arm": name, "seed": seed, **figures})

            try:
                interrupts.training = True
                finished = loop.run(training, path, record=record, stopped=interrupts)
            except Elsewhere:
                raise
            except RunError as error:
                kept = f" (last checkpoint: {path})" if path.exists() else ""
                told = RunError(f"{name}, seed {seed}: {error}{kept}")
                told.local = error.local
                raise told from None
            finally:
                interrupts.training = False
            if not finished:
                raise self._stopped(f"stopped after step {training.done} of {name}, seed {seed}", interrupts)
            return self._finished(name, training, evaluation or loop.evaluate(task, training.result))

        result = self._once(name, seed, train)
        watch.finished(self.recipe.steps)
        return result

    def _stopped(self, where: str, interrupts: Interrupts) -> Stopped:
        command = f"steer run --resume {shlex.quote(str(self.folder))}"
        return Stopped(f"{where}; all is saved. Go on with: {command}", interrupts.received or 2)

    def _finished(self, name: str, training: loop.Training, metrics: dict[str, float]) -> Result:
        """The result of a trained arm; its model is exported where the task knows how."""
        seed, steerer, counters = training.seed, training.steerer, training.counters
        model = training.result
        export = getattr(training.task, "export", None)
        if export is not None and rank() == 0:
            export(model, self._place(name, seed) / "export")
        steered = training.arm.subtract
        return Result(
            seed=seed,
            metrics=metrics,
            samples=counters.samples,
            candidates=counters.candidates,
            facts=counters.means(),
            cpu_seconds=counters.cpu_seconds,
            scale=float(steerer.scale) if steered else None,
            effective=counters.effective / max(1, training.done),
            variance_ratio=float(steerer.variance.ratio(steerer.scale.double())) if steered else None,
            cautions=steerer.cautions(),
        )

    def _once(self, name: str, seed: int, make: Callable[[], Result]) -> Result:
        """What result.json says, or else what ``make`` finds out."""
        path = self._place(name, seed) / "result.json"
        known = on_rank_zero(lambda: path.read_text() if path.exists() else None)
        if known is not None:
            try:
                return Result.model_validate_json(known)
            except ValidationError:
                raise UserError(f"{path} is damaged: delete it, and the run ends that arm again") from None
        began = time.monotonic()
        result = make()
        skipped = (getattr(self.task, "skipped", None) or dict)()
        result = result.model_copy(update={"seconds": time.monotonic() - began, "skipped": skipped})
        if rank() == 0:
            atomic_files.write(path, result.model_dump_json(indent=1))
        return result

    def _logged(self, step: int) -> bool:
        return step % self.recipe.log_every == 0 or step in (1, self.recipe.steps)

    def _place(self, name: str, seed: int) -> Path:
        return self.folder / "arms" / name / f"seed{seed}"

    def _summary(self, results: dict[str, list[Result]]) -> Summary:
        arms = {REFERENCE: ArmSummary(kind="reference", results=results[REFERENCE])}
        for name, arm in self.recipe.arms.items():
            looks = arm.selector is not None and registry.build("selectors", arm.selector).uses_reference
            arms[name] = ArmSummary(
                rule=arm.rule,
                selector=arm.selector,
                subtract=arm.subtract,
                distill=arm.distill,
                selector_uses_reference=looks,
                results=results[name],
            )
        known = json.loads((self.folder / "environment.json").read_text())
        found = [result for arm in arms.values() for result in arm.results]
        skipped = {reason: max(r.skipped.get(reason, 0) for r in found) for r in found for reason in r.skipped}
        return Summary(
            task=self.config.task,
            command=known["command"],
            started=known["started"],
            seconds=sum(result.seconds for result in found),
            baseline=self.recipe.baseline,
            metrics=dict(self.task.metrics),
            arms=arms,
            cautions=_cautions(arms),
            skipped=skipped,
        )

    def _exhibits(self) -> list[Exhibit]:
        """What the task has to show of the models of the first repetition."""
        task, reference = self._drawn(0)
        exhibits = getattr(task, "exhibits", None)
        if exhibits is None:
            return []
        models: dict[str, nn.Module] = {} if reference.model is None else {REFERENCE: reference.model}
        for name in self.recipe.arms:
            models[name] = loop.trained(task, self._place(name, 0) / "checkpoint.pt", self.device)
        with torch.no_grad():
            return exhibits(models)


def _cautions(arms: dict[str, ArmSummary]) -> list[str]:
    """One line a kind of caution and arm, however many seeds it befell."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name, arm in arms.items():
        for result in arm.results:
            for caution in result.cautions:
                kind = caution.partition("(")[0]  # the words before the numbers
                found.setdefault((name, kind), []).append((result.seed, caution))
    lines = []
    for (name, _), cases in found.items():
        seeds = len(arms[name].results)
        where = f"{len(cases)} of {seeds} seeds, seed {cases[0][0]} say" if seeds > 1 else "its only seed"
        lines.append(f"{name}, {where}: {cases[0][1]}")
    return lines


def new_folder(task: str) -> Path:
    """The first free ``runs/<task>-001``, ``-002``, ... below the working directory."""
    name = task.rpartition(":")[2]
    number = 1
    while (folder := Path("runs") / f"{name}-{number:03d}").exists():
        number += 1
    return folder


def _steps_done(path: Path) -> int:
    return int(loop.checkpoint.load(path)["done"]) if path.exists() else 0


def device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"no device is named {name!r}: use auto, cpu, cuda or cuda:0")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise UserError(f"device {name!r} was asked for, but torch sees {seen} CUDA devices: use --device cpu")
    return found
