"""Options that several commands have, each declared once; cheap to import."""

from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from typer import Option

from steering.trust import allow_code

_file, _machine = partial(Option, rich_help_panel="Files"), partial(Option, rich_help_panel="Machine")
Type = TypeVar("Type")  # Device[str], or Device[str | None] where there is another default

Ref = Annotated[str | None, Option("--ref", help="Reference model, openai/ViT-B-32 say.")]
Seeds = Annotated[int | None, Option("--seeds", min=1, help="Repetitions.")]
Seed = Annotated[int, Option("--seed", help="Of all draws.")]

Data = Annotated[Type, _file("--data", help="Your shards, 'shards/{000..099}.tar'.")]
Val = Annotated[str | None, _file("--val", help="Shards to evaluate on.")]
MeasuredPairs = Annotated[str | None, _file("--data", help="Pairs to measure on, 'val/*.tar', or emoji.")]
CaptionField = Annotated[str | None, _file("--caption-field", help="JSON field with the caption.")]
AllowBadShards = Annotated[bool, _file(help="Use what can be read of faulty shards.")]
CacheGb = Annotated[float, _file("--cache-gb", min=0.001, help="Disk space for copies of remote shards.")]
Sets = Annotated[list[str] | None, _file("--set", help="Any setting: a.b=c.")]
Config = Annotated[Path | None, _file("--config", help="Settings from a YAML file.")]
Resume = Annotated[Path | None, _file("--resume", help="Continue the run in this folder.")]
Out = Annotated[Path | None, _file("--out", help="Folder of what is written; runs/NAME-001 say if not given.")]

TrustCode = Annotated[
    bool,
    _machine(
        "--trust-code",
        callback=lambda typed: allow_code() if typed else None,
        is_eager=True,
        help="Let code run that a file names: module:Name, pipe:, ${oc.env:...}.",
    ),
]

Device = Annotated[Type, _machine("--device", help="auto, cpu, cuda.")]
Threads = Annotated[int | None, _machine("--threads", help="CPU threads.")]
Workers = Annotated[Type, _machine("--workers", min=0, help="Processes that read and decode ahead.")]
EncodedBatch = Annotated[int, _machine("--batch", min=1, help="Samples encoded at a time.")]
