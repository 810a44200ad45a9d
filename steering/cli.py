"""The command line: ``steer run``, ``steer list``, and what plugins add. Heavy imports wait until they are needed."""

import os
import shlex
import sys
import time
import traceback
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steering import options
from steering.errors import MOST, RunError, UserError, clean, explained

if TYPE_CHECKING:
    from rich.console import Console

    from steering.runs.config import RunConfig
    from steering.runs.summary import Summary

SILENT = 3.0  # seconds that a process waits which leaves it to the first one to say what is wrong

app = typer.Typer(
    name="steer",
    help="Reference-model data steering: let a trained model decide which data another model learns from.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"model-steering {version('model-steering')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_method = partial(typer.Option, rich_help_panel="Method")


@app.command()
def run(
    task: Annotated[
        str | None, typer.Argument(help="clip, digits, ... or package.module:Name, with arguments.")
    ] = None,
    ref: options.Ref = None,
    model: Annotated[str | None, typer.Option(help="Target model, ViT-B-16 say.")] = None,
    arms: Annotated[str | None, _method(help="These arms, a,b,c or all.")] = None,
    preset: Annotated[str | None, _method(help="Settings of a known training.")] = None,
    rule: Annotated[str | None, _method(help="Rule of an arm of your own: kl(rho=80).")] = None,
    selector: Annotated[str | None, _method(help="Its selector: top_k(keep=0.1).")] = None,
    reference_scale: Annotated[str | None, _method(help="Its scale: auto or a number.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps of every arm.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a gradient step.")] = None,
    seeds: options.Seeds = None,
    data: options.Data[str | None] = None,
    val: options.Val = None,
    label: Annotated[str | None, typer.Option(help="Column of --data to predict.", rich_help_panel="Files")] = None,
    config: options.Config = None,
    sets: options.Sets = None,
    out: options.Out = None,
    resume: options.Resume = None,
    device: options.Device[str | None] = None,
    threads: options.Threads = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Train a target with and without a reference's guidance, and compare.

    steer run clip          real image-caption pairs, some wrong, on a laptop
    steer run digits --rule "kl(rho=80)"
    """
    from rich.console import Console

    from steering.runs import config as configs

    recipe = _typed(steps=steps, batch=batch, seeds=seeds)
    taken = _typed(ref=ref, model=model, data=data, val=val, label=label)
    typed = _typed(device=device, threads=threads) | {"recipe": recipe, "options": taken}
    method = _typed(rule=rule, selector=selector, reference_scale=reference_scale)
    console = Console(soft_wrap=not sys.stdout.isatty(), quiet=_rank() > 0)
    if resume is not None:
        if task or config or out or method or arms or preset or recipe or taken:
            raise UserError(
                "--resume takes its settings from the run folder: give it alone, or with what only says where and how "
                "to go on (--device, --threads, --set options.workers=8)"
            )
        if not (resume / "config.yaml").exists():
            raise UserError(f"{resume} is no run folder: it has no config.yaml")
        config, out = resume / "config.yaml", resume
        if not sets and device is threads is None and _show_finished(resume, None, console):
            return
    settled, made = configs.resolve(task, file=config, sets=sets or [], typed=typed, preset=preset)
    settled = configs.choose_arms(settled, arms, method)
    if out is not None and _show_finished(out, settled, console):
        return

    from steering.runs.folder import new_folder
    from steering.runs.processes import device_named, on_rank_zero, process_group
    from steering.runs.run import Run  # slow to import: mistakes come before

    with process_group(device_named(settled.device)) as here:
        folder = Path(on_rank_zero(lambda: str(out or new_folder(settled.task))))
        if preset is not None:
            text = f"preset {preset}, with what was typed:\n\n{configs.text(settled)}"
            console.print(text, highlight=False, markup=False)
        _show(Run(settled, made, folder, console, ["steer", *sys.argv[1:]], here).execute(), folder, console)


@app.command("list")
def list_() -> None:
    """Show the tasks, rules and selectors that are installed."""
    from typing import get_args

    from steering import registry

    widest = typer.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for kind in get_args(registry.Kind):
        typer.secho(kind, bold=True)
        for name in registry.names(kind):
            line = f"  {name:<16} {registry.summary(kind, name)}"
            typer.echo(line if len(line) <= widest else line[: widest - 3] + "...")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs and of reports.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined report.")] = Path("runs/report"),
    title: Annotated[str, typer.Option(help="Its title.")] = "Report",
) -> None:
    """Join the reports of runs and checks into one."""
    from steering.reports.report import join, read
    from steering.runs.report import read_run

    reports = [read(folder) if (folder / "report.json").exists() else read_run(folder) for folder in folders]
    typer.echo(f"report: {join(reports, title, f'steer {shlex.join(sys.argv[1:])}', out)}")


def _show_finished(folder: Path, config: "RunConfig | None", console: "Console") -> bool:
    """Shows a run in which nothing is left to do, if the folder holds one of this configuration."""
    from steering.runs.summary import finished  # which loads neither torch nor the task

    summary = finished(folder, config)
    if summary is not None:
        _show(summary, folder, console)
    return summary is not None


def _show(summary: "Summary", folder: Path, console: "Console") -> None:
    from steering.reports.report import show
    from steering.runs.report import as_report

    show(as_report(summary), console, folder / "report.html")


def _rank() -> int:
    """Index among the processes that were started together."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def _typed(**options: Any) -> dict[str, Any]:
    """Those that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def main() -> None:
    """Entry point of the ``steer`` command; what goes wrong is one line on standard error and an exit code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for whoever writes training loops
    usage_error: Any = typer.BadParameter.__mro__[1]  # of all typing mistakes; typer gives it no public name
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name) or open(os.devnull, "w")  # closed by whoever started this
        stream.reconfigure(errors="backslashreplace")  # a terminal without a letter shows another one
        setattr(sys, name, stream)
    try:
        _add_plugins()
        code = app(prog_name="steer", standalone_mode=False)
    except usage_error as error:
        code = _fail(error, error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt) as error:
        code = _fail(error, "interrupted", 130)
    except Exception as error:
        signal = getattr(error, "signal", None)
        code = _fail(error, explained(error), 128 + signal if signal else 2 if isinstance(error, UserError) else 1)
    try:
        sys.stdout.flush()
    except OSError as error:  # whoever read has enough, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or (1 if isinstance(error, BrokenPipeError) else _fail(error, explained(error), 1))
    sys.exit(code)


def _add_plugins() -> None:
    """Commands of plugins: functions as typer takes them, cheap to import."""
    for entry in sorted(entry_points(group="steering.commands"), key=lambda entry: entry.name):
        try:
            app.command(entry.name)(entry.load())
        except Exception as error:  # a package that is broken costs its own command alone
            _fail(error, f"without the command {entry.name}, which cannot be loaded: {explained(error)}", 1)


def _fail(error: BaseException, message: str, code: int) -> int:
    """Says what is wrong, once for all processes of a run: what befell one alone is marked as its own."""
    if os.environ.get("STEER_DEBUG"):
        traceback.print_exception(error)
    own = not isinstance(error, UserError | RuntimeError) and code == 1  # of a library or a task, on this rank
    if _rank() == 0 or own or getattr(error, "local", False):
        unknown = code == 1 and not isinstance(error, RunError)
        hint = ". STEER_DEBUG=1 in front of the command shows where" * unknown
        typer.echo(f"steer: {' '.join(clean(message, 2 * MOST).split())}{hint}", err=True)
    else:
        time.sleep(
            SILENT
        )  # a launcher ends all processes when the first one has gone, which shall be the one that speaks
    return code
