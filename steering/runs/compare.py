"""A comparison from Python: one's own task in a run folder, as ``steer run`` would make it."""

from pathlib import Path
from typing import Any

from rich.console import Console

from steering.runs import config as configs
from steering.runs.folder import new_folder
from steering.runs.run import Run
from steering.runs.summary import Summary
from steering.task import Task


def compare(task: Task, out: str | Path | None = None, *, quiet: bool = False, **recipe: Any) -> Summary:
    """Trains all arms of a task, reference included, and writes the report.

    Args:
        task: of any kind; it need not have a name.
        out: run folder, ``runs/NAME-001`` say if not given; one of the same task is continued.
        quiet: whether to show no progress.
        recipe: settings in place of the task's: ``steps=100, seeds=3``.

    Returns:
        What summary.json has; ``report.html`` beside it is the page.

    Raises:
        UserError: a setting is unknown, or the folder is another run's.
    """
    name = type(task).__name__.lower()
    settings = {"task": name, "options": {"task": repr(task)}, "recipe": task.recipe.model_dump() | recipe}
    folder = Path(out) if out is not None else new_folder(name)
    command = ["compare", repr(task)]
    resume = f"the same compare(task, {str(folder)!r})"
    return Run(configs.validate(settings), task, folder, Console(quiet=quiet), command, resume=resume).execute()
