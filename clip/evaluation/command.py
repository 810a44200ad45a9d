"""``steer eval``: which models, on what, and the table and the file at the end."""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from steering import atomic_files
from steering.clip.data.shards import Shards
from steering.clip.data.sources import retrieval_set
from steering.clip.evaluation.embedding import Work
from steering.clip.evaluation.retrieval import Share
from steering.clip.evaluation.suites import EmojiSuite, PairSet, RetrievalSuite, Suite, ZeroShotSuite, measure
from steering.clip.models import CONFIG, one_line
from steering.clip.reference.load import load_reference
from steering.clip.task import EMOJI_DATA, Clip
from steering.distributed import rank, world_size
from steering.errors import UserError, did_you_mean
from steering.reports.grid import MISSING, Cell, Column, Grid, to_rich
from steering.runs import config as configs
from steering.runs.processes import device_named, process_group
from steering.runs.statistics import Interval, interval
from steering.runs.table import Format
from steering.settings import Metric
from steering.training.seeds import untouched


@dataclass(frozen=True)
class Model:
    """A model to evaluate: its name, or that of its arm; the seed of its repetition, None outside runs; where it is."""

    name: str
    seed: int | None
    ref: str

    @property
    def label(self) -> str:
        return one_line(self.name if self.seed is None else f"{self.name}, seed {self.seed}")


Shares = dict[Model, dict[str, Share]]  # of every model by metric


def run(
    target: str,
    *,
    data: str | None,
    zeroshot: str | None,
    arms: str | None,
    out: Path | None,
    device: str,
    work: Work,
    caption_field: str | None,
    bad_share: float,
) -> None:
    """Evaluates models and prints their shares; the arguments are those of ``steer eval``."""
    folder = Path(os.path.expanduser(target))
    of_run = os.path.isfile(folder / "config.yaml")
    if arms is not None and not of_run:
        raise UserError(f"--arms chooses among the arms of a run folder, and {target} is none: it has no config.yaml")
    models = _of_run(folder, arms) if of_run else [Model(target, None, target)]
    with process_group(device_named(device)) as chosen:
        of_task = data is None and zeroshot is None and of_run
        suites = _task(folder).suites if of_task else _suites(data, zeroshot, caption_field, bad_share)
        console = Console(soft_wrap=not sys.stdout.isatty(), quiet=rank() > 0)
        shares: Shares = {}
        for number, model in enumerate(models, 1):
            console.print(f"evaluating {model.label} ({number} of {len(models)})", markup=False, highlight=False)
            with untouched():
                towers = load_reference(model.ref)
            shares[model] = measure(towers.to(chosen), suites, work)
        metrics = {name: metric for suite in suites for name, metric in suite.metrics.items()}
        console.print(to_rich(_grid(metrics, shares)))
        skipped = dict(sum((suite.skips.reasons for suite in suites), Counter()))
        for reason, count in skipped.items():
            console.print(f"skipped: {reason}, {count} times", markup=False, highlight=False, style="yellow")
        if out is not None and rank() == 0:
            settings = {"target": target, "data": data, "zeroshot": zeroshot, "device": str(chosen)}
            record = _record(metrics, shares)
            atomic_files.write_json(out, settings | {"ranks": world_size()} | record | {"skipped": skipped})
            console.print(one_line(f"written: {out}", 4000), markup=False, highlight=False)


def _of_run(folder: Path, arms: str | None) -> list[Model]:
    """The exported models of a run, arm by arm and seed by seed."""
    exported: dict[str, dict[int, Path]] = {}
    for path in folder.glob(f"arms/*/seed*/export/{CONFIG}"):
        arm, seed = path.parts[-4], path.parts[-3].removeprefix("seed")
        if seed.isdecimal() and len(seed) < 10:
            exported.setdefault(arm, {})[int(seed)] = path.parent
    if not exported:
        raise UserError(f"{folder} has no exported model: finish it first, steer run --resume {folder}")
    ordered = [name for name in configs.load(folder / "config.yaml").recipe.arms if name in exported]
    chosen = [name.strip() for name in arms.split(",") if name.strip()] if arms is not None else ordered
    for name in chosen or [""]:
        if name not in exported:
            hint = did_you_mean(name, ordered) or "."
            raise UserError(f"{folder} has no exported arm {name!r}{hint} There are {', '.join(ordered)}")
    return [Model(name, seed, f"local-dir:{path}") for name in chosen for seed, path in sorted(exported[name].items())]


def _task(folder: Path) -> Clip:
    config, task = configs.resolve(None, file=folder / "config.yaml")
    if not isinstance(task, Clip):
        raise UserError(f"{folder} is a run of {config.task}: steer eval evaluates CLIP models")
    return task


def _suites(data: str | None, zeroshot: str | None, caption_field: str | None, bad_share: float) -> list[Suite]:
    """What the options name; the bundled pairs if they name nothing."""
    suites: list[Suite] = []
    if data is not None and data != EMOJI_DATA:
        pattern, lines = retrieval_set(data)
        shards = Shards.open(pattern, caption_field=caption_field)
        suites.append(RetrievalSuite(PairSet(shards, bad_share=bad_share, lines=lines)))
    elif data == EMOJI_DATA or zeroshot is None:
        suites.append(EmojiSuite())
    if zeroshot is not None:
        suites.append(ZeroShotSuite(zeroshot, bad_share))
    return suites


def _means(shares: Shares, metric: str) -> dict[str, Interval]:
    """The mean over seeds of every arm that has several."""
    values: dict[str, list[float]] = {}
    for model, of_model in shares.items():
        values.setdefault(model.name, []).append(of_model[metric].value)
    return {name: interval(seeds) for name, seeds in values.items() if len(seeds) > 1}


def _grid(metrics: Mapping[str, Metric], shares: Shares) -> Grid:
    """A line for every metric and model, then the mean over seeds."""
    rows = []
    for name, metric in metrics.items():
        style = Format.of(metric, [])

        def span(low: float | None, high: float | None, style=style) -> Cell:
            return Cell(MISSING if low is None or high is None else f"{style.number(low)} to {style.number(high)}")

        best = max(of_model[name].value for of_model in shares.values())
        for number, (model, share) in enumerate((model, of_model[name]) for model, of_model in shares.items()):
            value = Cell(style.number(share.value), "best" if share.value == best and len(shares) > 1 else "")
            label = "" if number else metric.label
            rows.append((Cell(label), Cell(model.label), value, span(share.low, share.high)))
        for arm, mean in _means(shares, name).items():
            title = Cell(f"{arm}, mean of {mean.seeds}")
            rows.append((Cell(""), title, Cell(style.number(mean.mean)), span(mean.low, mean.high)))
        chance = MISSING if metric.chance is None else style.number(metric.chance)
        rows.append((Cell(""), Cell("chance", "quiet"), Cell(chance, "quiet"), Cell("")))
    columns = (Column("metric", False), Column("model", False), Column("%"), Column("95 % interval"))
    note = "Intervals: of one model Wilson's, of the draw of the samples; of a mean t, of the draw of the seeds."
    return Grid("Evaluation", columns, tuple(rows), note)


def _record(metrics: Mapping[str, Metric], shares: Shares) -> dict[str, Any]:
    """The results as the file holds them."""
    models = [asdict(model) | {"metrics": {k: asdict(v) for k, v in of.items()}} for model, of in shares.items()]
    means: dict[str, dict[str, Any]] = {}
    for name in metrics:
        for arm, mean in _means(shares, name).items():
            value = {"value": mean.mean, "low": mean.low, "high": mean.high, "seeds": mean.seeds}
            means.setdefault(arm, {})[name] = value
    return {"metrics": {k: v.model_dump() for k, v in metrics.items()}, "models": models, "means": means}
