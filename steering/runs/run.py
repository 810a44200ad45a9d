"""A run: every arm and seed trained or picked up where it stopped, then one summary and one report."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from steering import atomic_files, registry
from steering.auto import race
from steering.auto.estimate import base_of, estimate
from steering.base_weights import BaseWeights
from steering.distributed import rank
from steering.errors import Elsewhere, RunError, UserError
from steering.references.store import ReferenceLosses
from steering.runs import config as configs
from steering.runs.config import RunConfig
from steering.runs.folder import RunFolder
from steering.runs.processes import device_named, on_rank_zero
from steering.runs.progress import Watch
from steering.runs.report import write_report
from steering.runs.summary import ArmSummary, Journal, Result, Summary
from steering.settings import Arm
from steering.task import Exhibit, Task
from steering.training import loop
from steering.training.step import candidates_needed
from steering.trust import code_in

REFERENCE = "reference"


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
        resume: the command that goes on after an interrupt, if not ``steer run --resume``.
    """

    config: RunConfig
    task: Task
    folder: Path
    console: Console
    command: list[str]
    here: torch.device | None = None
    observe: Callable[[str, loop.Training], None] = lambda name, training: None
    resume: str | None = None

    def __post_init__(self):
        self.recipe = self.config.recipe
        self.device = self.here or device_named(self.config.device)
        self._reference: ReferenceLosses | None = None
        self._reference_metrics: dict[str, float] | None = None

    def execute(self) -> Summary:
        """Trains what is not trained yet, then writes summary.json and report.html.

        Raises:
            UserError: the folder is another run's, or some process is at work in it.
            Stopped: SIGINT or SIGTERM came; all is saved.
        """
        torch.set_num_threads(self.config.threads)
        if not on_rank_zero(self.folder.exists):
            self._load_reference()
        flag = " --trust-code" * any(code_in(self.config.model_dump()))  # what was typed is in a file then
        resume = self.resume or f"steer run --resume {shlex.quote(str(self.folder))}{flag}"
        about = {"settings": "config.yaml", "compare": self._settings, "command": self.command, "resume": resume}
        with RunFolder.open(self.folder, **about) as folder:
            self.console.print(f"run folder: {self.folder}", markup=False, highlight=False)
            journal = Journal(self.folder / "metrics.jsonl") if rank() == 0 else None
            summary = self._summary(self._results(folder, journal))
            if journal:
                atomic_files.write(self.folder / "summary.json", summary.model_dump_json(indent=1))
                write_report(self.folder, summary, journal.records(), self._exhibits())
            on_rank_zero(lambda: None)  # the first one has written the report
            return summary

    def _load_reference(self) -> None:
        """What cannot be loaded or trained leaves no folder behind."""
        reference = self._reference_of(0)
        _ = self.task.metrics, reference.model
        for arm in self.recipe.arms.values():
            _ = arm.distill and reference.teacher.model
            candidates_needed(arm, self.recipe, self.task.size)

    def _settings(self, path: Path) -> str:
        """The text of config.yaml, unless the one that is there is of another configuration."""
        if path.exists():
            changed = configs.differences(configs.load(path), self.config, configs.elastic(self.task))
            if changed:
                raise UserError(
                    f"{self.folder} holds a run of another configuration ({'; '.join(changed[:3])}): choose another "
                    f"--out, or continue that run with --resume {self.folder}"
                )
        return configs.text(self.config)

    def _results(self, folder: RunFolder, journal: Journal | None) -> dict[str, list[Result]]:
        """Results of the reference and of every arm, one for every seed."""
        results: dict[str, list[Result]] = {name: [] for name in (REFERENCE, *self.recipe.arms)}
        total = self.recipe.steps * len(self.recipe.arms) * self.recipe.seeds
        with Watch(self.console, total_steps=total) as watch:
            for seed in range(self.recipe.seeds):
                reference = self._reference_of(seed)
                for name in results:
                    steps = 0 if name == REFERENCE else self.recipe.steps
                    make = partial(self._train, name, seed, reference, folder, journal, watch)
                    make = make if steps else partial(self._evaluate, reference, seed, watch)
                    path = f"arms/{name}/seed{seed}/result.json"
                    results[name].append(folder.part(path, Result, partial(self._timed, make)))
                    watch.finished(steps)
        return results

    def _timed(self, make: Callable[[], Result]) -> Result:
        began = time.monotonic()
        result = make()
        skipped = (getattr(self.task, "skipped", None) or dict)()
        return result.model_copy(update={"seconds": time.monotonic() - began, "skipped": skipped})

    def _reference_of(self, seed: int) -> ReferenceLosses:
        """The reference's losses on the data of one repetition, kept while the data stay the same."""
        task = self.task.seeded(seed)
        if self._reference is None or self._reference.task is not task:
            losses = self._arm_folder(REFERENCE, seed) / "losses"
            self._reference = ReferenceLosses(task, self.device, losses, micro_batch=self.recipe.micro_batch)
            self._reference_metrics = None
        return self._reference

    def _evaluate(self, reference: ReferenceLosses, seed: int, watch: Watch) -> Result:
        """The reference's own metrics, computed once for as long as the data stay the same."""
        if self._reference_metrics is None:
            watch.note("evaluating the reference")
            self._reference_metrics = on_rank_zero(lambda: loop.evaluate(reference.task, reference.model))
        return Result(seed=seed, metrics=self._reference_metrics or {})

    def _train(
        self, name: str, seed: int, reference: ReferenceLosses, folder: RunFolder, journal: Journal | None, watch: Watch
    ) -> Result:
        """One arm of one repetition, trained to its end from where its checkpoint is."""
        task = reference.task
        path = self._arm_folder(name, seed) / "checkpoint.pt"
        arm, base = self._prepared(name, seed, reference, folder, watch)
        training = loop.Training(
            task, arm, self.recipe, reference=reference, seed=seed, device=self.device, base=base.table
        )
        watch.begin(f"{name} (seed {seed})", self.recipe.steps)
        evaluation: dict[str, float] = {}
        resumed = True

        def record(figures: dict[str, Any]) -> None:
            nonlocal resumed
            if journal and resumed:
                journal.cut(name, seed, figures["step"] - 1)
            resumed = False
            evaluation.update(figures.get("evaluation", {}))
            if "loss" in figures:
                watch.step(figures["step"], figures["samples"], figures["loss"])
                self.observe(name, training)
            logged = figures["step"] % self.recipe.log_every == 0 or figures["step"] in (1, self.recipe.steps)
            if journal and (logged or "evaluation" in figures):
                journal.add({"arm": name, "seed": seed, **figures})

        with folder.interrupts.training(), _named(f"{name}, seed {seed}", path):
            finished = loop.run(training, path, record=record, stopped=folder.interrupts)
        if not finished:
            raise folder.interrupts.stopped(f"stopped after step {training.done} of {name}, seed {seed}")
        result = self._result(name, training, evaluation or loop.evaluate(task, training.result))
        return result.model_copy(update={"notes": [base.sentence] if base.sentence else []})

    def _prepared(
        self, name: str, seed: int, reference: ReferenceLosses, folder: RunFolder, watch: Watch
    ) -> tuple[Arm, BaseWeights]:
        """The arm that is trained, the winner where arms race, with its base weights if it has some.

        Both are found once and then read from the arm's folder.
        """
        arm, path = self.recipe.arms[name], self._arm_folder(name, seed) / "base_weights.safetensors"
        settings, seen = base_of(arm), set[str]()

        def note(text: str) -> None:
            if text not in seen:
                seen.add(text)
                watch.note(f"{name} (seed {seed}): {text}")

        about: dict[str, Any] = {"recipe": self.recipe, "seed": seed, "device": self.device, "note": note}
        if settings is None:
            return arm, BaseWeights()
        sentence = ""
        folds = settings.folds
        if settings.race:

            def run_race() -> race.Outcome:
                outcome, fitted = race.run(reference.task, reference, folds=folds, **about)
                if fitted is not None:
                    on_rank_zero(lambda: BaseWeights(fitted.weights, fitted.sentence).save(path))
                return outcome

            outcome = folder.part(f"arms/{name}/seed{seed}/race.json", race.Outcome, run_race)
            arm, sentence = outcome.arm, outcome.sentence
            settings = base_of(arm)
        if settings is None:
            return arm, BaseWeights(sentence=sentence)
        if not on_rank_zero(path.exists):
            fitted = estimate(reference.task, reference, folds=settings.folds, **about)
            on_rank_zero(lambda: BaseWeights(fitted.weights, fitted.sentence).save(path))
        base = BaseWeights.load(path)
        note(base.sentence)
        base.sentence = "; ".join(filter(None, [sentence, base.sentence]))
        return arm, base

    def _result(self, name: str, training: loop.Training, metrics: dict[str, float]) -> Result:
        """The result of a trained arm; its model is exported where the task knows how."""
        seed, steerer, counters = training.seed, training.steerer, training.counters
        model = training.result
        export = getattr(training.task, "export", None)
        if export is not None and rank() == 0:
            export(model, self._arm_folder(name, seed) / "export")
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

    def _arm_folder(self, name: str, seed: int) -> Path:
        return self.folder / "arms" / name / f"seed{seed}"

    def _summary(self, results: dict[str, list[Result]]) -> Summary:
        arms = {REFERENCE: ArmSummary(kind="reference", results=results[REFERENCE])}
        for name, arm in self.recipe.arms.items():
            uses = arm.selector is not None and bool(registry.build("selectors", arm.selector).uses_reference)
            about = arm.model_dump(include={"rule", "selector", "subtract", "distill"})
            arms[name] = ArmSummary(**about, selector_uses_reference=uses, results=results[name])
        about = atomic_files.read_json(self.folder / "environment.json")
        flat = [result for arm in arms.values() for result in arm.results]
        return Summary(
            task=self.config.task,
            command=about["command"],
            started=about["started"],
            seconds=sum(result.seconds for result in flat),
            baseline=self.recipe.baseline,
            metrics=dict(self.task.metrics),
            arms=arms,
            cautions=_cautions(arms),
            skipped={reason: max(r.skipped.get(reason, 0) for r in flat) for r in flat for reason in r.skipped},
        )

    def _exhibits(self) -> Iterator[Exhibit]:
        """What the task has to show of the models of the first repetition, when it is asked for."""
        reference = self._reference_of(0)
        task = reference.task
        exhibits = getattr(task, "exhibits", None)
        if exhibits is None:
            return
        models: dict[str, nn.Module] = {} if reference.model is None else {REFERENCE: reference.model}
        for name in self.recipe.arms:
            models[name] = loop.trained(task, self._arm_folder(name, 0) / "checkpoint.pt", self.device)
        with torch.no_grad():
            yield from exhibits(models)


@contextmanager
def _named(arm: str, checkpoint: Path) -> Iterator[None]:
    """Names the arm to which something happens, and what is left of it."""
    try:
        yield
    except Elsewhere:
        raise
    except RunError as error:
        kept = f" (last checkpoint: {checkpoint})" if checkpoint.exists() else ""
        named = RunError(f"{arm}: {error}{kept}")
        named.local = error.local
        raise named from None


def _cautions(arms: dict[str, ArmSummary]) -> list[str]:
    """One line a kind of caution and arm, however many seeds it befell."""
    lines = []
    for name, arm in arms.items():
        cases: dict[str, list[tuple[int, str]]] = {}
        for result in arm.results:
            for caution in result.cautions:
                kind = caution.partition("(")[0]  # the sentence before its numbers
                cases.setdefault(kind, []).append((result.seed, caution))
        for of_kind in cases.values():
            seeds, (seed, caution) = len(arm.results), of_kind[0]
            where = f"{len(of_kind)} of {seeds} seeds, seed {seed} say" if seeds > 1 else "its only seed"
            lines.append(f"{name}, {where}: {caution}")
    return lines
