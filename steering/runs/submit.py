"""A line of steer as a Slurm job, through submitit: one task a GPU, queued again until the line is done."""

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from steering.errors import RunError, UserError

# In front of srun in the batch script: newer ones take the cores of a task from this name alone.
CORES = ['if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi']
# Behind srun. 143: steer was told to stop and has saved everything. If Slurm still counts the job as running, that was
# for its time limit or for another job, and this one has more to do; else it was cancelled.
QUEUE_AGAIN = [
    "code=$?",
    'if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then',
    '  scontrol requeue "$SLURM_JOB_ID"',
    "fi",
    'exit "$code"',
]
WARNING = 120  # seconds before the time limit at which the processes are told to stop


@dataclass(frozen=True)
class Job:
    """What a job may use.

    Attributes:
        nodes: machines.
        gpus: of each machine.
        processes: of each machine.
        hours: the longest that it may take before it is queued again.
        partition: of the cluster, None for the usual one.
        sets: more options of sbatch, ``name=value`` or ``name``.
    """

    nodes: int = 1
    gpus: int = 1
    processes: int = 1
    hours: float = 24.0
    partition: str | None = None
    sets: Sequence[str] = field(default_factory=list)


def submit(context: typer.Context, line: Sequence[str], job: Job, *, local: bool) -> None:
    """Queues a line and says where its output will be; the arguments are those of ``steer submit``.

    Raises:
        UserError: there is no such command, no Slurm, no submitit, or no folder in which the run could go on.
        RunError: Slurm refuses the job.
    """
    folder = _folder(context, line)
    executor = _local(folder, job) if local else _slurm(folder, job)
    try:
        submitted = executor.submit(become, list(line), _free_port() if local else None)
    except (RuntimeError, OSError) as error:  # submitit's own errors are RuntimeErrors
        raise RunError(f"the job was not taken: {error}") from None
    typer.echo(f"job {submitted.job_id}: steer {' '.join(line)}\noutput: {submitted.paths.stdout}")


def become(line: list[str], port: int | None) -> None:
    """Turns this task of a job into steer, so that signals reach it and nobody else.

    Args:
        line: words behind ``steer``.
        port: where the tasks meet on this machine; None where Slurm tells them.
    """
    tasks = os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")
    if port is not None and tasks != "1":
        number = os.environ["SUBMITIT_LOCAL_GLOBALID"]
        os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": tasks}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.execv(sys.executable, [sys.executable, "-u", "-m", "steering", *line])


def _folder(context: typer.Context, line: Sequence[str]) -> Path:
    """For scripts and output, beside what the line writes; mistakes in the line are told here, not in the queue."""
    group: Any = context.find_root().command
    command = group.get_command(context, line[0])
    if command is None:
        raise UserError(f"steer has no command {line[0]!r}: write steer submit -- run clip --out runs/x, say")
    given = command.make_context(line[0], list(line[1:])).params
    out = given.get("resume") or given.get("out")
    if out is None and "out" in given:
        raise UserError("a job that is queued again has to find what it has done: say where with --out")
    return Path(f"{out}.jobs") if out else Path("jobs") / line[0]


def _slurm(folder: Path, job: Job) -> Any:
    submitit = _submitit()
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError:
        raise UserError(
            "this machine has no srun: submit from one that belongs to the cluster, or try the line here with --local"
        ) from None
    settings = {"job_name": "steer", "nodes": job.nodes, "ntasks_per_node": job.processes, "time": _minutes(job)}
    settings |= {"gpus_per_node": job.gpus} if job.gpus else {}
    settings |= {"partition": job.partition} if job.partition else {}
    more: dict[str, Any] = {"requeue": True, "signal": f"TERM@{WARNING}"}
    for text in job.sets:
        name, given, value = text.partition("=")
        more[name] = value if given else True
    executor.update_parameters(
        **settings,
        additional_parameters=more,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],  # nobody waits for a process that has failed
        setup=CORES,
        teardown=QUEUE_AGAIN,
    )
    return executor


def _local(folder: Path, job: Job) -> Any:
    if job.nodes > 1:
        raise UserError(f"--local is this machine alone, got --nodes {job.nodes}")
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "TERM"  # at the time limit, to what will look after the job
    executor = _submitit().LocalExecutor(folder)
    executor.update_parameters(
        timeout_min=_minutes(job), tasks_per_node=job.processes, gpus_per_node=job.gpus, stderr_to_stdout=True
    )
    return executor


def _minutes(job: Job) -> int:
    return max(1, round(60 * job.hours))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise UserError("steer submit needs submitit: pip install 'model-steering[slurm]'") from None
    return submitit
