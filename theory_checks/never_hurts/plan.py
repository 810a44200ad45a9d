"""What the study compares: problems, references that are good or bad in a known way, and arms."""

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from steering.settings import Arm, AtLeastOne, Recipe, Strict
from steering.tasks.digits import Digits
from steering.theory_checks.never_hurts.problem import Problem

PLAIN, AUTO, FOLDS, FIXED = "plain", "auto", "auto_folds", "kl_0.5"
FIRST_SEED = 9000  # nobody had looked at any seed from here on when the study was frozen
SEEDS = 20
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the KL rule, the best of which is chosen in hindsight
WEAK = {"reference_samples": 20}


@dataclass(frozen=True)
class Setting:
    """A problem, and the weight decay that is best for plain training on it."""

    options: dict[str, Any]  # of Problem
    decay: float  # of the least error of plain training on seeds 200 to 207, see docs/never_hurts.md
    references: tuple[str, ...] = ()  # beside the reference's own: weak, shuffled, leaked, sure


_A = {"noise": 0.4, "reference_samples": 100}
_B = {"noise": 0.4, "reference_samples": 500, "reference_noise": 0.4, "reference_c": 0.01}
_C = {"noise": 0.0, "reference_samples": 300}
_H = {"source": "mixture", "noise": 0.0, "reference_samples": 400}
_I = {"source": "mixture", "noise": 0.4, "reference_samples": 400, "reference_noise": 0.4}
_F = {**_H, "imbalance": True}
_G = {**_F, "noise": 0.3}
_MLP = {"model": "mlp", "noise": 0.3, "reference_samples": 300, "reference_c": 0.3}
SETTINGS = {
    "A150": Setting({**_A, "samples": 150}, 0.2),
    "A400": Setting({**_A, "samples": 400}, 0.2, ("weak", "shuffled", "leaked", "sure")),
    "A750": Setting({**_A, "samples": 750}, 0.2),
    "B400": Setting({**_B, "samples": 400}, 0.2, ("leaked",)),
    "C100": Setting({**_C, "samples": 100}, 0.02, ("weak",)),
    "C400": Setting({**_C, "samples": 400}, 0.02, ("weak", "shuffled", "leaked", "sure")),
    "H100": Setting({**_H, "samples": 100}, 0.1, ("weak", "shuffled")),
    "H800": Setting({**_H, "samples": 800}, 0.02),
    "I100": Setting({**_I, "samples": 100}, 0.1, ("weak",)),
    "I800": Setting({**_I, "samples": 800}, 0.1, ("leaked", "sure")),
    "F800": Setting({**_F, "samples": 800}, 0.0003, ("shuffled",)),
    "G200": Setting({**_G, "samples": 200}, 0.001, ("shuffled",)),
    "A400-pair": Setting({**_A, "noise": 0.35, "noise_kind": "pair", "samples": 400}, 0.5),
    "A400-instance": Setting({**_A, "noise": 0.35, "noise_kind": "instance", "samples": 400}, 0.3, ("shuffled",)),
    "I800-instance": Setting({**_I, "noise": 0.35, "noise_kind": "instance", "samples": 800}, 0.05),
    "MLP750": Setting({**_MLP, "samples": 750}, 0.05, ("weak", "shuffled", "leaked")),
    "MLP750-clean": Setting({**_MLP, "noise": 0.0, "samples": 750}, 0.003),
}


class Cell(Strict):
    """One row of the table: a problem and a reference."""

    options: dict[str, Any]  # of Problem
    decay: float  # weight decay of all arms


class Plan(Strict):
    """A whole study; what plan.json holds."""

    cells: dict[str, Cell]
    recipe: Recipe  # of the linear target; with the arms
    mlp: Recipe  # of the other one
    folds: AtLeastOne  # of AUTO with folds
    seeds: AtLeastOne
    first_seed: int = Field(ge=0)

    def seed_numbers(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def recipe_of(self, cell: Cell) -> Recipe:
        """That of the cell's target, in batches no larger than its training set."""
        recipe = self.mlp if cell.options.get("model") == "mlp" else self.recipe
        batch = min(recipe.batch, cell.options["samples"])
        return recipe.model_copy(update={"weight_decay": cell.decay, "batch": batch})


def kl_arm(temperature: float) -> str:
    return f"kl_{temperature:g}"


def cells() -> dict[str, Cell]:
    """All of them: every setting with its own reference, then with its bad ones."""
    rows = {}
    for name, setting in SETTINGS.items():
        rows[name] = Cell(options=setting.options, decay=setting.decay)
        for reference in setting.references:
            change = WEAK if reference == "weak" else {"reference_kind": reference}
            rows[f"{name}-{reference}"] = Cell(options={**setting.options, **change}, decay=setting.decay)
    return rows


def planned(*, seeds: int = SEEDS, first_seed: int = FIRST_SEED, quick: bool = False, folds: int = 4) -> Plan:
    """The study, or a small one of three cells and short trainings."""
    temperatures = (0.5, 2.0) if quick else TEMPERATURES
    plain = Arm(rule="uniform", subtract=False)
    arms = {PLAIN: plain, AUTO: plain.model_copy(update={"base": "auto"})}
    arms[FOLDS] = plain.model_copy(update={"base": f"auto(folds={folds})"})
    arms |= {kl_arm(t): Arm(rule=f"kl(temperature={t:g})", reference_scale=1.0) for t in temperatures}
    common = {"arms": arms, "baseline": PLAIN, "evaluate_every": 0}
    linear = Digits.recipe.model_copy(update=common)
    mlp = linear.model_copy(update={"steps": 200, "batch": 320, "learning_rate": 0.003})
    chosen = cells()
    if quick:
        linear, mlp = (recipe.model_copy(update={"steps": 40}) for recipe in (linear, mlp))
        chosen = {name: chosen[name] for name in ("A400", "A400-shuffled", "F800")}
    return Plan(cells=chosen, recipe=linear, mlp=mlp, folds=folds, seeds=seeds, first_seed=first_seed)


def problem_of(cell: Cell) -> Problem:
    return Problem(**cell.options)
