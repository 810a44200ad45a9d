"""The commands of this plugin. Heavy imports wait until one of them runs."""

from pathlib import Path
from typing import Annotated

import typer

from steering import options


def cache(
    data: options.Data[str],
    ref: options.Ref = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the cache; features/MODEL-KEY if not given.")] = None,
    batch: options.EncodedBatch = 256,
    workers: options.Workers[int | None] = None,
    device: options.Device[str] = "auto",
    caption_field: options.CaptionField = None,
    allow_bad_shards: options.AllowBadShards = False,
    cache_gb: options.CacheGb = 50.0,
    check: Annotated[bool, typer.Option(help="Read what is there whole, make faulty files again.")] = False,
) -> None:
    """Compute a reference's features once, for all runs that train on the same shards.

    Several processes, on one machine or many, may fill a cache at once; started again, a stopped one continues.
    """
    from steering.clip.reference.command import run
    from steering.clip.task import Clip

    task = Clip(data=data, ref=ref, caption_field=caption_field, bad_shards=allow_bad_shards, cache_gb=cache_gb)
    run(task, out, batch=batch, workers=workers, device=device, check=check)


def index(
    data: Annotated[str, typer.Argument(help="Your shards, 'shards/{000..099}.tar', several joined by ::.")],
    rebuild: Annotated[bool, typer.Option(help="Forget what is known: samples get new numbers.")] = False,
    allow_bad_shards: options.AllowBadShards = False,
    cache_gb: options.CacheGb = 50.0,
) -> None:
    """Count the samples of shards and note where they begin.

    Training does the same when it first sees shards. What changes or disappears later is noticed by both.
    """
    from steering.clip.data.index import open_index, show
    from steering.clip.data.shard_files import ShardFiles
    from steering.clip.data.sources import expand

    named, files = expand(data, missing=allow_bad_shards), ShardFiles(cache_gb * 1e9)
    show(open_index(named, files=files, bad_shards=allow_bad_shards, rebuild=rebuild, read_headers=True), data)


def eval_(
    target: Annotated[str, typer.Argument(help="A run folder, or a model: openai/ViT-B-32, local-dir:my/model.")],
    data: options.MeasuredPairs = None,
    zeroshot: Annotated[str | None, typer.Option(help="Folder of classes, or imagenet:FOLDER.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms of a run, a,b,c.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for what is found.")] = None,
    device: options.Device[str] = "auto",
    batch: options.EncodedBatch = 256,
    workers: options.Workers[int] = 0,
    caption_field: options.CaptionField = None,
    bad_share: Annotated[float, typer.Option(min=0, max=1, help="Largest share of unreadable samples.")] = 0.01,
    trust_code: options.TrustCode = False,
) -> None:
    """Evaluate the models of a run, or any one model: retrieval and zero-shot classification, with intervals.

    Without --data and --zeroshot: on what the run was evaluated on, or on the bundled pairs. Under torchrun or srun
    all processes share the work.
    """
    from steering.clip.evaluation.command import run
    from steering.clip.evaluation.embedding import Work

    work = Work(shared=True, block=batch, workers=workers)
    reading = {"caption_field": caption_field, "bad_share": bad_share}
    run(target, data=data, zeroshot=zeroshot, arms=arms, out=out, device=device, work=work, **reading)


def data(
    name: Annotated[str, typer.Argument(help="icons: drawings of @iconify/json with their names.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    package: Annotated[Path | None, typer.Option(help="The package as a .tgz, instead of fetching it by npm.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many icons at most.")] = None,
    seed: options.Seed = 0,
    side: Annotated[int, typer.Option(min=8, max=512, help="Pixels of a picture's side.")] = 32,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
) -> None:
    """Make image-caption shards of a public package: 230,000 icons under free licences.

    Started again, a stopped one continues. The same package gives the same bytes.
    """
    from steering.errors import UserError, did_you_mean

    if name != "icons":
        raise UserError(f"no data are named {name!r}; known: icons{did_you_mean(name, ['icons'])}")
    from steering.clip.icons.command import run

    run(out, package, limit=limit, seed=seed, side=side, workers=workers)
