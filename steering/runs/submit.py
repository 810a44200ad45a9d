"""A line of steer as a Slurm job, through submitit: one task a GPU, queued again until the line is done."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from steering.errors import RunError, UserError

# In front of srun in the batch script: newer ones take the cores of a task from this name alone.
CORES = ['if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi']
# Behind srun. 143: steer was asked to stop and has saved everything. If Slurm still counts the job as running, that was
# for its time limit or for another job, and this one has more to do; else it was cancelled.
QUEUE_AGAIN = [
    "code=$?",
    'if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then',
    '  scontrol requeue "$SLURM_JOB_ID"',
    "fi",
    'exit "$code"',
]
WARNING = 120  # seconds before the time limit at which the processes get SIGTERM


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
    if local and nodes > 1:
        raise UserError(f"--local is this machine alone, got --nodes {nodes}")
    folder, minutes, port = _folder(context, line), max(1, round(60 * hours)), None
    settings: dict[str, Any] = {"gpus_per_node": gpus} if gpus or local else {}
    if local:
        settings |= {"timeout_min": minutes, "tasks_per_node": processes or max(1, gpus)}
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "TERM"  # at the time limit, to what will look after the job
        executor = _submitit().LocalExecutor(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    else:
        settings |= {"job_name": "steer", "nodes": nodes, "ntasks_per_node": processes or max(1, gpus)}
        settings |= {"time": minutes} | ({"partition": partition} if partition else {})
        executor = _slurm(folder, set_slurm or [])
    executor.update_parameters(**settings, stderr_to_stdout=True)
    try:
        submitted = executor.submit(become, list(line), port)
    except (RuntimeError, OSError) as error:  # submitit's own errors are RuntimeErrors
        raise RunError(f"the job was not taken: {error}") from None
    typer.echo(f"job {submitted.job_id}: steer {' '.join(line)}\noutput: {submitted.paths.stdout}")


def become(line: list[str], port: int | None) -> None:
    """Turns this task of a job into steer, so that signals reach it and nobody else.

    Args:
        line: what is typed behind ``steer``.
        port: where the tasks meet on this machine; None where Slurm says so.
    """
    tasks = os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")
    if port is not None and tasks != "1":
        number = os.environ["SUBMITIT_LOCAL_GLOBALID"]
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": tasks}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.execv(sys.executable, [sys.executable, "-u", "-m", "steering", *line])


def _folder(context: typer.Context, line: Sequence[str]) -> Path:
    """For scripts and output, beside what the line writes; mistakes in the line come up here, not in the queue."""
    group: Any = context.find_root().command
    command = group.get_command(context, line[0])
    if command is None:
        raise UserError(f"steer has no command {line[0]!r}: write steer submit -- run clip --out runs/x, say")
    params = command.make_context(line[0], list(line[1:])).params
    out = params.get("resume") or params.get("out")
    if out is None and "out" in params:
        raise UserError("a job that is queued again has to find what it has done: say where with --out")
    return Path(f"{out}.jobs") if out else Path("jobs") / line[0]


def _slurm(folder: Path, sets: Sequence[str]) -> Any:
    """What queues jobs; ``sets`` are options of sbatch, ``name=value`` or ``name``."""
    submitit = _submitit()
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError:
        raise UserError(
            "this machine has no srun: submit from one that belongs to the cluster, or try the line here with --local"
        ) from None
    pairs = (text.partition("=") for text in sets)
    additional = {name: value if equals else True for name, equals, value in pairs}
    executor.update_parameters(
        additional_parameters={"requeue": True, "signal": f"TERM@{WARNING}"} | additional,
        srun_args=["--kill-on-bad-exit=1"],  # nobody waits for a process that has failed
        setup=CORES,
        teardown=QUEUE_AGAIN,
    )
    return executor


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise UserError("steer submit needs submitit: pip install 'model-steering[slurm]'") from None
    return submitit
