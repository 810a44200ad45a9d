"""The commands of the theory checks. Heavy imports wait until one of them runs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from steering import options


def variance(
    task: Annotated[str | None, typer.Argument(help="A task, digits say, or the folder of a run.")] = None,
    ref: Annotated[list[str] | None, typer.Option(help="Candidate reference, before any training; several.")] = None,
    data: options.MeasuredPairs = None,
    proxy: Annotated[str | None, typer.Option(help="Model to take for the best one; else the best candidate.")] = None,
    seeds: options.Seeds = None,
    validate: Annotated[bool, typer.Option(help="Train with references of known worth: is the order right?")] = False,
    sets: options.Sets = None,
    pairs: Annotated[int, typer.Option(min=10, max=4000, help="Most image-text pairs to use.")] = 1000,
    device: options.Device[str] = "auto",
    workers: options.Workers[int] = 0,
    caption_field: options.CaptionField = None,
    out: options.Out = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Measure whether a reference makes the loss vary less, before or after training.

    steer variance digits            trains with and without the reference, then measures

    steer variance runs/digits-001   measures the models of a run, or of the first --seeds of it

    steer variance --ref openai/ViT-B-32 --ref openai/ViT-B-16 --data 'shards/*.tar'   ranks them before training
    """
    from steering.theory_checks.variance.command import Options, run

    command = shlex.join(["steer", *sys.argv[1:]])
    judged, trained = (ref or [], proxy, data, caption_field), (seeds, validate, sets or [])
    run(Options(task, *judged, *trained, out, device, pairs, workers, command))


def curve(
    task: Annotated[str, typer.Argument(help="digits, blobs, ... or package.module:Name, with arguments.")],
    sizes: Annotated[str | None, typer.Option(help="Numbers of training samples, 100,200,400.")] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Repetitions; 20 for claims against the reference.")] = None,
    setting: Annotated[str | None, typer.Option(help="A frozen setting: A, B or MLP of digits.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, a,b,c.")] = None,
    tune: Annotated[int, typer.Option(min=0, help="Values tried of each hyper-parameter; 0: frozen.")] = 0,
    keep: Annotated[float | None, typer.Option(min=0.01, max=1, help="Share that the static filter keeps.")] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Of the repetitions that report.")] = 7000,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if not given.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a known training.")] = None,
    ref: options.Ref = None,
    data: options.Data[str | None] = None,
    val: options.Val = None,
    sets: options.Sets = None,
    out: options.Out = None,
) -> None:
    """Measure how many samples every method needs: plain training, DRO, DRRho, and other uses of a reference.

    steer curve digits --sizes 100,400 --seeds 3       a first look, half a minute
    steer curve digits --setting A                     a frozen setting on fresh seeds
    steer curve clip --sizes 750,1500,3000,6000 --seeds 3

    The same command with the same --out goes on with what is there.
    """
    from steering.theory_checks.curve.command import run

    typed = {name: value for name, value in {"ref": ref, "data": data, "val": val}.items() if value is not None}
    about = {"sizes": sizes, "seeds": seeds, "methods": methods, "tune": tune, "first_seed": first_seed}
    run(task, setting=setting, out=out, jobs=jobs, keep=keep, sets=sets or [], preset=preset, typed=typed, **about)


def bound(
    run: Annotated[Path | None, typer.Option(help="A run folder: certify its models instead of simulating.")] = None,
    width: Annotated[
        float | None, typer.Option(min=0, help="Length of an interval that holds all differences of its losses.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A small simulation, in seconds.")] = False,
    seed: options.Seed = 0,
    out: options.Out = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Check the rates, bounds and certificates of the theory where the truth is known.

    steer bound --quick
    steer bound --run runs/digits-001
    """
    from steering.theory_checks.bound.command import run as run_bound

    run_bound(run_folder=run, width=width, quick=quick, seed=seed, out=out)


def scaling(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs of several sizes or lengths.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Columns method, compute, error [model, samples, run].")] = None,
    subset: Annotated[str | None, typer.Option(help="Of the paper's points: published-six or all.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only these points: model=A,B or samples>=6e8.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; the first if not given.")] = None,
    compute: Annotated[str, typer.Option(help="Of runs: samples or cpu (seconds).")] = "samples",
    metric: Annotated[str | None, typer.Option(help="Of runs: the error; the headline if not given.")] = None,
    seed: options.Seed = 0,
    out: options.Out = None,
) -> None:
    """Fit power laws of error against compute, with intervals, and compare their exponents.

    steer scaling                      the published points of DRRho-CLIP
    steer scaling --csv points.csv
    steer scaling runs/digits-001 runs/digits-002 runs/digits-003
    """
    from steering.theory_checks.scaling.command import run

    points = {"subset_name": subset, "conditions": where or [], "baseline": baseline}
    run(runs or [], csv=csv, unit=compute, metric=metric, seed=seed, out=out, **points)


def never_hurts(
    seeds: Annotated[int | None, typer.Option(min=2, help="Repetitions; 20 if not given.")] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Of the repetitions; develop on others.")] = 9000,
    quick: Annotated[bool, typer.Option(help="Three cells and short trainings, in seconds.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if not given.")] = None,
    out: options.Out = None,
) -> None:
    """Measure whether auto, or a fixed temperature, is ever worse than plain training, with good references and bad.

    steer never-hurts --quick --first-seed 200

    steer never-hurts --out runs/never-hurts    all cells, 20 seeds: an evening on two cores

    The same command with the same --out goes on with what is there.
    """
    from steering.theory_checks.never_hurts.command import run

    run(seeds=seeds, first_seed=first_seed, quick=quick, jobs=jobs or os.cpu_count() or 1, out=out)
