"""``steer eval``: which models, on what, and the table and the file at the end."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from steering import atomic_files, registry
from steering.clip.data.shards import Shards
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.retrieval import Share
from steering.clip.evaluation.suites import EmojiSuite, PairSet, RetrievalSuite, Suite
from steering.clip.evaluation.zeroshot import ZeroShotSuite
from steering.clip.export import CONFIG
from steering.clip.models import Towers
from steering.clip.reference.load import load_reference
from steering.clip.task import EMOJI_DATA, Clip
from steering.distributed import rank, world_size
from steering.errors import UserError, did_you_mean
from steering.reports.grid import MISSING, Cell, Column, Grid, to_rich
from steering.runs import config as configs
from steering.runs.processes import process_group
from steering.runs.run import device as find_device
from steering.runs.statistics import interval
from steering.runs.table import Format
from steering.settings import Metric
from steering.training.seeds import untouched


@dataclass(frozen=True)
class Model:
    """A model to evaluate.

    Attributes:
        name: of its arm, or of the model.
        seed: of its repetition; None outside runs.
        ref: as ``load_reference`` takes it.
    """

    name: str
    seed: int | None
    ref: str

    def load(self) -> Towers:
        with untouched():
            return load_reference(self.ref)

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"


@dataclass
class Found:
    """What was found out.

    Attributes:
        metrics: how to read the shares.
        shares: every model's, by metric.
    """

    metrics: Mapping[str, Metric]
    shares: dict[Model, dict[str, Share]] = field(default_factory=dict)

    def arms(self) -> dict[str, list[dict[str, Share]]]:
        """What was found for each seed, of arms that have several."""
        names = dict.fromkeys(model.name for model in self.shares)
        every = {name: [shares for model, shares in self.shares.items() if model.name == name] for name in names}
        return {name: seeds for name, seeds in every.items() if len(seeds) > 1}


def run(
    target: str,
    *,
    data: str | None,
    zeroshot: str | None,
    arms: str | None,
    out: Path | None,
    device: str,
    batch: int,
    workers: int,
    caption_field: str | None,
    bad_share: float,
) -> None:
    """Evaluates models and prints what was found; the arguments are those of ``steer eval``."""
    folder = Path(target).expanduser()
    of_run = (folder / "config.yaml").is_file()
    models = list(_of_run(folder, arms)) if of_run else _one(target, arms)
    with process_group(find_device(device)) as here:
        if data is None and zeroshot is None and of_run:
            suites = _task(folder)._suites
        else:
            suites = _suites(data, zeroshot, caption_field, bad_share)
        console = Console(soft_wrap=not sys.stdout.isatty(), quiet=rank() > 0)
        found = evaluate(models, suites, here, Work(shared=True, block=batch, workers=workers), console)
        console.print(to_rich(_grid(found)))
        skipped = dict(sum((suite.skips.reasons for suite in suites[1:]), suites[0].skips.reasons))
        for reason, count in skipped.items():
            console.print(f"skipped: {reason}, {count} times", markup=False, highlight=False, style="yellow")
        if out is not None and rank() == 0:
            said = {"target": target, "data": data, "zeroshot": zeroshot, "device": str(here), "ranks": world_size()}
            atomic_files.write_json(out, said | _record(found) | {"skipped": skipped})
            console.print(f"written: {out}", markup=False, highlight=False)


def evaluate(
    models: Sequence[Model], suites: Sequence[Suite], device: torch.device, work: Work, console: Console
) -> Found:
    """Measures one model after the other, each loaded only then."""
    found = Found({name: metric for suite in suites for name, metric in suite.metrics.items()})
    for number, model in enumerate(models, 1):
        console.print(f"evaluating {model.label} ({number} of {len(models)})", markup=False, highlight=False)
        towers = model.load().to(device)
        shares = [suite.measure(towers, work) for suite in suites]
        found.shares[model] = {name: share for each in shares for name, share in each.items()}
    return found


def _of_run(folder: Path, arms: str | None) -> Iterator[Model]:
    """The exported models of a run, arm by arm and seed by seed."""
    exported: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob(f"arms/*/seed*/export/{CONFIG}")):
        seed = path.parent.parent
        if seed.name.removeprefix("seed").isdecimal():
            exported.setdefault(seed.parent.name, {})[int(seed.name.removeprefix("seed"))] = path.parent
    if not exported:
        raise UserError(f"{folder} has no exported model: finish it first, steer run --resume {folder}")
    ordered = [name for name in configs.load(folder / "config.yaml").recipe.arms if name in exported]
    wanted = [name.strip() for name in arms.split(",") if name.strip()] if arms is not None else ordered
    for name in wanted or [""]:
        if name not in exported:
            hint = did_you_mean(name, ordered) or "."
            raise UserError(f"{folder} has no exported arm {name!r}{hint} There are {', '.join(ordered)}")
    for name in wanted:
        for seed, path in sorted(exported[name].items()):
            yield Model(name, seed, f"local-dir:{path}")


def _one(ref: str, arms: str | None) -> list[Model]:
    if arms is not None:
        raise UserError(f"--arms chooses among the arms of a run folder, and {ref} is none: it has no config.yaml")
    return [Model(ref, None, ref)]


def _task(folder: Path) -> Clip:
    """The task of a run, for what it was evaluated on."""
    config = configs.load(folder / "config.yaml")
    task: Any = registry.build("tasks", config.task, config.options)
    if not isinstance(task, Clip):
        raise UserError(f"{folder} is a run of {config.task}: steer eval evaluates CLIP models")
    return task


def _suites(data: str | None, zeroshot: str | None, caption_field: str | None, bad_share: float) -> list[Suite]:
    """What the options name; the bundled pairs if they name nothing."""
    suites: list[Suite] = []
    if data is not None and data != EMOJI_DATA:
        suites.append(RetrievalSuite(_pairs(data, caption_field, bad_share)))
    elif data == EMOJI_DATA or zeroshot is None:
        suites.append(EmojiSuite())
    if zeroshot is not None:
        suites.append(ZeroShotSuite(zeroshot, bad_share))
    return suites


def _pairs(data: str, caption_field: str | None, bad_share: float) -> PairSet:
    """Shards, or a folder of them as retrieval benchmarks lay it out: ``test/*.tar``, a caption a line."""
    folder, pattern, lines = Path(data).expanduser(), data, False
    if folder.is_dir():
        inner = "*.tar" if any(folder.glob("*.tar")) else "test/*.tar"
        kind = folder / "dataset_type.txt"
        pattern, lines = str(folder / inner), kind.is_file() and kind.read_text().strip() == "retrieval"
    return PairSet(Shards.open(pattern, caption_field=caption_field), bad_share=bad_share, lines=lines)


def _grid(found: Found) -> Grid:
    """A line for every metric and model, then the mean over seeds."""
    rows = []
    for name, metric in found.metrics.items():
        style = Format.of(metric, [])
        best = max((shares[name].value for shares in found.shares.values()), default=0.0)
        for place, (model, shares) in enumerate(found.shares.items()):
            share = shares[name]
            tone = "best" if share.value == best and len(found.shares) > 1 else ""
            span = f"{style.number(share.low)} to {style.number(share.high)}"
            label = metric.label if place == 0 else ""
            rows.append((Cell(label), Cell(model.label), Cell(style.number(share.value), tone), Cell(span)))
        for arm, seeds in found.arms().items():
            mean = interval([shares[name].value for shares in seeds])
            low, high = mean.low, mean.high
            span = MISSING if low is None or high is None else f"{style.number(low)} to {style.number(high)}"
            rows.append((Cell(""), Cell(f"{arm}, mean of {len(seeds)}"), Cell(style.number(mean.mean)), Cell(span)))
        chance = MISSING if metric.chance is None else style.number(metric.chance)
        rows.append((Cell(""), Cell("chance", "quiet"), Cell(chance, "quiet"), Cell("")))
    columns = (Column("metric", False), Column("model", False), Column("%"), Column("95 % interval"))
    note = "Intervals: of one model Wilson's, of the draw of the samples; of a mean t, of the draw of the seeds."
    return Grid("Evaluation", columns, tuple(rows), note)


def _record(found: Found) -> dict[str, Any]:
    """What the file holds, besides what was asked."""
    models = [
        asdict(model) | {"metrics": {name: asdict(share) for name, share in shares.items()}}
        for model, shares in found.shares.items()
    ]
    means = {
        arm: {name: _mean([shares[name].value for shares in seeds]) for name in found.metrics}
        for arm, seeds in found.arms().items()
    }
    return {"metrics": {k: v.model_dump() for k, v in found.metrics.items()}, "models": models, "means": means}


def _mean(values: list[float]) -> dict[str, Any]:
    mean = interval(values)
    return {"value": mean.mean, "low": mean.low, "high": mean.high, "seeds": mean.seeds}
