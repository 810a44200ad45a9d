"""A network that has learned wrong labels by heart, and whether less curvature undoes some of it."""

from collections.abc import Sequence
from typing import Any

from steering.curvature.classification import Classification, Split, error, recipe, trained
from steering.curvature.methods import network, without_head
from steering.curvature.replace import replace_relus
from steering.curvature.samples import digits, drawn, mislabelled
from steering.curvature.search import Probe, choose, search_with_probe
from steering.curvature.unit import set_beta
from steering.training.seeds import generator

NOISE = 0.4  # share of the training and validation labels that are wrong
TRAINING, VALIDATION = 400, 200
CLASSES = 10


def measure(seed: int, betas: Sequence[float], steps: int = 600) -> dict[str, Any]:
    """One repetition: the network as it was trained, and with beta chosen on noisy samples that it never saw.

    Returns:
        ``rows`` by way: test error on clean labels; ``searches``: every beta with its validation error, with the head
        as it was and with one that is fitted anew on the noisy training samples; ``fitted``: training error.
    """
    chance = generator(seed, "curvature", "noise")
    training, validation, test = drawn(digits(), [TRAINING, VALIDATION], chance)
    training, validation = (Split(s.x, mislabelled(s.y, NOISE, CLASSES, chance)) for s in (training, validation))
    task = Classification(lambda: network(64, 64, 3, CLASSES), training, validation, test, recipe(steps, 100, 1e-2))
    model = trained(task, task.recipe, seed)
    whole = replace_relus(model, 1.0, example=(test.x[:2],)).model
    body = replace_relus(without_head(model)[0], 1.0, example=(test.x[:2],)).model

    def score(beta: float) -> float:
        set_beta(whole, beta)
        return error(whole, validation)

    kept, fitted = choose(betas, score), search_with_probe(body, betas, training, validation)
    rows = {}
    for name, beta in (("trained", 1.0), ("search", kept.chosen)):
        set_beta(whole, beta)
        rows[name] = {"test": error(whole, test), "chosen": beta, "tried": len(kept.betas) if name == "search" else 1}
    for name, beta in (("regression", 1.0), ("search_regression", fitted.chosen)):
        set_beta(body, beta)
        tried = len(fitted.betas) if name == "search_regression" else 1
        rows[name] = {"test": Probe(body, training).error(body, test), "chosen": beta, "tried": tried}
    searches = {"search": kept, "search_regression": fitted}
    told = {name: {"betas": s.betas, "validation": s.scores, "chosen": s.chosen} for name, s in searches.items()}
    return {
        "rows": rows,
        "searches": told,
        "fitted": error(model, training),
        "sizes": [TRAINING, VALIDATION, len(test.y)],
    }
