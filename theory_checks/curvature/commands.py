"""The command of curvature tuning. Heavy imports wait until it runs."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from steering import options


def tune(
    target: Annotated[str, typer.Argument(help="digits; a task; a run folder or checkpoint; resnet18=weights.pt.")],
    data: Annotated[Path | None, typer.Option(help="Pictures for a network from a file, a folder a class.")] = None,
    parts: Annotated[
        str | None, typer.Option(help="Of digits: transfer, noise, robustness, boundary, bridge (comma-separated).")
    ] = None,
    betas: Annotated[str | None, typer.Option(help="0.5,0.7,0.9 or first:last:step; 1 is always tried.")] = None,
    seeds: options.Seeds = None,
    refit: Annotated[
        int, typer.Option(min=0, help="Steps of training the last layer anew for every beta, of a task or run.")
    ] = 0,
    methods: Annotated[
        str | None, typer.Option(help="On pictures: probe, curvature, low_rank, full (comma-separated).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="On pictures: gradient steps of each method.")] = None,
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of the pictures in pixels.")] = 224,
    arm: Annotated[str | None, typer.Option(help="Of a task or run; its baseline if not given.")] = None,
    sets: options.Sets = None,
    quick: Annotated[bool, typer.Option(help="Fewer of everything, to see that it works.")] = False,
    device: options.Device[str] = "auto",
    out: options.Out = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Tune the curvature of a trained model: a smoother unit in place of every ReLU, without training.

    steer tune digits            studies on small networks

    steer tune runs/blobs-001    the models of a run, or of the first --seeds of it

    steer tune resnet18=resnet18.pt --data pictures
    """
    typed = dict(locals())
    from steering.theory_checks.curvature.command import run

    run(SimpleNamespace(**typed, command=shlex.join(["steer", *sys.argv[1:]])))
