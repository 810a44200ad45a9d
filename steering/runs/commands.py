"""The command of this part. Heavy imports wait until it runs."""

from typing import Annotated

import typer


def submit(
    context: typer.Context,
    line: Annotated[list[str], typer.Argument(help="What to run there: -- run clip --out runs/x.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each machine, with a process for each.")] = 1,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of each machine, if not one a GPU.")] = None,
    hours: Annotated[float, typer.Option(min=0.05, help="The longest that one job may take.")] = 24.0,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    set_slurm: Annotated[
        list[str] | None, typer.Option("--set-slurm", help="Any option of sbatch: account=A, exclusive.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="On this machine, without Slurm.")] = False,
) -> None:
    """Queue a line of steer as a Slurm job; one that meets its time limit is queued again and goes on.

    steer submit --nodes 2 --gpus 8 --hours 24 -- run clip --data 'shards/*.tar' --out runs/x
    """
    from steering.runs.submit import Job, submit

    each = processes or max(1, gpus)
    submit(context, line, Job(nodes, gpus, each, hours, partition, set_slurm or []), local=local)
