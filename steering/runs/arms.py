"""Which arms a run has: the recipe's, some of them, or one of the user's own beside the plain ones."""

from collections.abc import Mapping
from typing import Any

from steering.errors import UserError, did_you_mean
from steering.settings import Recipe

OWN = "steered"  # name of the arm made by --rule, --selector, --reference-scale


def choose(recipe: Recipe, names: str | None, method: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings with the arms the user asked for.

    Args:
        recipe: complete.
        names: ``a,b,c`` takes these arms, ``all`` those as well that are there for the asking; None takes the usual
            ones.
        method: rule, selector, reference_scale of an arm of the user's own; it then stands beside the arms
            that do without the reference, in place of the others.

    Raises:
        UserError: an arm that does not exist.
    """
    arms = {name: arm.model_dump() for name, arm in recipe.arms.items()}
    if method:
        plain = {n: a for n, a in arms.items() if not a["subtract"] and a["selector"] is None}
        first = next((a for a in arms.values() if a["subtract"]), {})
        own = {k: v for k, v in first.items() if k in ("rule", "reference_scale", "gamma")} | dict(method)
        if str(own.get("reference_scale", "auto")) != "auto":
            own["reference_scale"] = _number(own["reference_scale"])
        if set(method) == {"selector"}:
            own["subtract"] = False  # one method at a time: the reference chooses, and does not weigh as well
        arms = plain | {OWN: own}
    if names is not None:
        arms |= {name: arm.model_dump() for name, arm in recipe.more.items()}
    if names is not None and names.strip() != "all":
        wanted = [name.strip() for name in names.split(",") if name.strip() and name.strip() != "reference"]
        if not names.strip(" ,"):
            raise UserError(f"--arms takes names, a,b,c, got {names!r}. Known: reference, {', '.join(arms)}")
        for name in wanted:
            if name not in arms:
                raise UserError(
                    f"no arm is named {name!r}{did_you_mean(name, arms) or '.'} Known: reference, {', '.join(arms)}"
                )
        arms = {name: arms[name] for name in wanted}
    baseline = recipe.baseline if recipe.baseline in arms else next(iter(arms), "")
    return recipe.model_dump() | {"arms": arms, "more": {}, "baseline": baseline}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--reference-scale is auto or a number of at least 0, got {text!r}") from None
