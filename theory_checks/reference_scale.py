"""Which scale of the reference loss is best on a task: an experiment over seeds.

Command: ``python -m steering.theory_checks.reference_scale digits --seeds 20``
         ``python -m steering.theory_checks.reference_scale clip --seeds 3``
Result: in the README, section "The scale of the reference".

The excess loss is loss - scale * reference loss. The paper's scale is 1. The scale of least variance is
Cov(loss, reference) / Var(reference), which ``auto`` estimates online; least variance is not always best.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from steering.errors import RunError, UserError
from steering.reports.report import show
from steering.runs import config as configs
from steering.runs.folder import new_folder
from steering.runs.report import as_report
from steering.runs.run import Run
from steering.settings import Arm, Recipe

DEFAULT = "0,0.15,0.3,0.5,1,auto"


def arms_of(recipe: Recipe, scales: str) -> dict[str, Arm]:
    """The recipe's first steered arm, once for every scale; 0 is plain DRO."""
    steered, arms = [arm for arm in recipe.arms.values() if arm.subtract], {}
    if not steered:
        raise UserError("this task has no arm that subtracts a reference loss: nothing to scale")
    for text in scales.split(","):
        try:
            scale = "auto" if text.strip() == "auto" else float(text)
        except ValueError:
            raise UserError(f"a scale is a number or auto, got {text!r}") from None
        arms[f"scale_{text.strip().replace('.', '_')}"] = steered[0].model_copy(update={"reference_scale": scale})
    return arms


def main(
    task: str,
    seeds: Annotated[int, typer.Option(help="Repetitions; differences are paired over them.")] = 12,
    scales: Annotated[str, typer.Option(help="Numbers and auto.")] = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c.")] = None,
) -> None:
    """Train one arm for every scale and compare them pairwise."""
    try:
        config, problem = configs.resolve(task, sets=sets or [], typed={"recipe": {"seeds": seeds}})
        arms = arms_of(config.recipe, scales)
        baseline = "scale_1" if "scale_1" in arms else next(iter(arms))
        recipe = config.recipe.model_copy(update={"arms": arms, "baseline": baseline})
        settled = configs.validate(config.model_dump() | {"recipe": recipe.model_dump()})
        folder = out or new_folder(f"scale-{settled.task}")
        console = Console()
        command = ["python", "-m", "steering.theory_checks.reference_scale", task, "--seeds", str(seeds)]
        show(as_report(Run(settled, problem, folder, console, command).execute()), console)
    except (UserError, RunError) as error:
        typer.echo(f"reference_scale: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


if __name__ == "__main__":
    typer.run(main)
