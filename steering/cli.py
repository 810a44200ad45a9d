"""The command line: ``steer run``, ``steer list``, and what plugins add. Heavy imports wait until they are needed."""

import os
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from steering.errors import RunError, UserError

app = typer.Typer(
    name="steer",
    help="Reference-model data steering: let a trained model decide which data another model learns from.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
TRAIN, METHOD, FILES = "Training", "Method", "Files"


def _version(wanted: bool) -> None:
    if wanted:
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


@app.command()
def run(
    task: Annotated[
        str | None, typer.Argument(help="clip, digits, ... or package.module:Name, with arguments.")
    ] = None,
    ref: Annotated[
        str | None, typer.Option(help="Reference model, openai/ViT-B-32 say.", rich_help_panel=METHOD)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Target model, ViT-B-16 say.", rich_help_panel=METHOD)] = None,
    data: Annotated[
        str | None, typer.Option(help="Your shards, 'shards/{000..099}.tar'.", rich_help_panel=FILES)
    ] = None,
    arms: Annotated[str | None, typer.Option(help="These arms, a,b,c or all.", rich_help_panel=METHOD)] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a known training.", rich_help_panel=METHOD)] = None,
    rule: Annotated[
        str | None, typer.Option(help="Rule of an arm of your own: kl(rho=80).", rich_help_panel=METHOD)
    ] = None,
    selector: Annotated[str | None, typer.Option(help="Its selector: top_k(keep=0.1).", rich_help_panel=METHOD)] = None,
    reference_scale: Annotated[
        str | None, typer.Option(help="Its scale: auto or a number.", rich_help_panel=METHOD)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps of every arm.", rich_help_panel=TRAIN)] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a gradient step.", rich_help_panel=TRAIN)] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions.", rich_help_panel=TRAIN)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.", rich_help_panel=TRAIN)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=TRAIN)] = None,
    config: Annotated[Path | None, typer.Option(help="Settings from a YAML file.", rich_help_panel=FILES)] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c.", rich_help_panel=FILES)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/TASK-001 say if not given.", rich_help_panel=FILES)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.", rich_help_panel=FILES)] = None,
) -> None:
    """Train a target with and without a reference's guidance, and compare.

    steer run clip          real image-caption pairs, some wrong, on a laptop
    steer run digits --rule "kl(rho=80)"
    """
    recipe = {"steps": steps, "batch": batch, "seeds": seeds}
    options = {"ref": ref, "model": model, "data": data}
    given: dict[str, Any] = {"device": device, "threads": threads, "recipe": _known(recipe), "options": _known(options)}
    method = {"rule": rule, "selector": selector, "reference_scale": reference_scale}
    _run(task, _known(given), _known(method), arms, config, sets or [], out, resume, preset)


@app.command("list")
def list_() -> None:
    """Show the tasks, rules and selectors that are installed."""
    _list()


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


def _add_plugins() -> None:
    """Commands of plugins: entry points ``steering.commands``, functions as typer takes them, cheap to import."""
    for entry in sorted(entry_points(group="steering.commands"), key=lambda entry: entry.name):
        app.command(entry.name)(entry.load())


def _run(task, given, method, arms, config, sets, out, resume, preset) -> None:
    from rich.console import Console

    from steering.runs import config as configs
    from steering.runs.arms import choose

    if resume is not None:
        if task or config or out or method or arms or preset or given["recipe"] or given["options"]:
            raise UserError(
                "--resume takes its settings from the run folder: give it alone, or with what only says where and how "
                "to go on (--device, --threads, --set options.workers=8)"
            )
        if not (resume / "config.yaml").exists():
            raise UserError(f"{resume} is no run folder: it has no config.yaml")
        config, out = resume / "config.yaml", resume
    settled, problem = configs.resolve(task, file=config, sets=sets, given=given, preset=preset)
    settled = configs.validate(settled.model_dump() | {"recipe": choose(settled.recipe, arms, method)})

    from steering.reports.report import show
    from steering.runs import run as runs  # slow to import: mistakes are told before
    from steering.runs.processes import on_rank_zero, process_group
    from steering.runs.report import as_report

    with process_group(runs.device(settled.device)) as device:
        folder = Path(on_rank_zero(lambda: str(out or runs.new_folder(settled.task))))
        console = Console(soft_wrap=not sys.stdout.isatty(), quiet=_rank() > 0)
        if preset is not None:
            console.print(
                f"preset {preset}, with what was typed:\n\n{configs.text(settled)}", highlight=False, markup=False
            )
        whole = runs.Run(settled, problem, folder, console, ["steer", *sys.argv[1:]], device)
        show(as_report(whole.execute()), console)
        console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False)


def _rank() -> int:
    """Place among the processes that were started together."""
    return int(os.environ.get("RANK", "0"))


def _list() -> None:
    from typing import get_args

    from steering import registry

    widest = typer.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for kind in get_args(registry.Kind):
        typer.secho(kind, bold=True)
        for name in registry.known(kind):
            line = f"  {name:<16} {registry.summary(kind, name)}"
            typer.echo(line if len(line) <= widest else line[: widest - 3] + "...")


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def main() -> None:
    """Entry point of the ``steer`` command; what goes wrong is one line on standard error and an exit code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are for whoever writes training loops
    _add_plugins()
    usage_error: Any = typer.BadParameter.__mro__[1]  # of all typing mistakes; typer gives it no public name
    try:
        code = app(prog_name="steer", standalone_mode=False)
    except usage_error as error:
        code = _fail(error, error.format_message(), 2)
    except UserError as error:
        code = _fail(error, str(error), 2)
    except RunError as error:
        signal = getattr(error, "signal", None)
        code = _fail(error, str(error), 128 + signal if signal else 1)
    except RuntimeError as error:
        if _rank() == 0:
            raise
        code = _fail(error, "", 1)  # a rank that lost the first one, which says why
    except (typer.Abort, KeyboardInterrupt) as error:
        code = _fail(error, "interrupted", 130)
    sys.exit(code)


def _fail(error: BaseException, message: str, code: int) -> int:
    """Says what is wrong, once for all processes of a run: what befell one alone is marked as its own."""
    if _rank() == 0 or getattr(error, "local", False):
        typer.echo(f"steer: {' '.join(message.split())}", err=True)
    return code
