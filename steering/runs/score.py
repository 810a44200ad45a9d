"""The command ``steer score``. Heavy imports wait until it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steering import options


def score(
    task: Annotated[str, typer.Argument(help="tabular, digits, ... as for steer run, with arguments.")],
    out: Annotated[Path, typer.Option(help="File of the losses, .parquet or .safetensors.")],
    ref: options.Ref = None,
    data: options.Data[str | None] = None,
    label: Annotated[str | None, typer.Option(help="Column of --data to predict.", rich_help_panel="Files")] = None,
    sets: options.Sets = None,
    target: Annotated[str | None, typer.Option(help="Checkpoint of a run, or the target's losses.")] = None,
    rule: Annotated[str | None, typer.Option(help="Weights by this rule: kl(temperature=1).")] = None,
    reference_scale: Annotated[str, typer.Option(help="Its scale: auto or a number.")] = "1",
    keep: Annotated[float | None, typer.Option(help="Choose this share of the samples.")] = None,
    batch: options.EncodedBatch = 256,
    device: options.Device[str] = "auto",
    trust_code: options.TrustCode = False,
) -> None:
    """Compute a reference's losses of a task's samples once; started again, a stopped one continues.

    steer score tabular --data people.csv --label bought --ref sklearn:model.skops --out losses.parquet
    """
    from steering.runs import config as configs
    from steering.runs.scoring import Choice, run

    taken: dict[str, Any] = {"ref": ref, "data": data, "label": label}
    typed = {"options": {name: value for name, value in taken.items() if value is not None}}
    _, made = configs.resolve(task, sets=sets or [], typed=typed)
    run(made, out, Choice(target, rule, reference_scale, keep), batch=batch, device=device)
