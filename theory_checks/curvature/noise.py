"""A network that has learned wrong labels by heart, and whether less curvature undoes some of it."""

from collections.abc import Sequence
from typing import Any

from steering.curvature import replace_relus, set_beta
from steering.reports.grid import Cell
from steering.tasks.in_memory import corrupted
from steering.theory_checks.curvature import section, small
from steering.theory_checks.curvature.transfer import without_head
from steering.training.seeds import generator

NOISE = 0.4  # share of the training and validation labels that are wrong
TRAINING, VALIDATION = 400, 200
CLASSES = 10
PAIRS = {  # name of the searched row: name of the same at beta = 1, what the search is called in the answer
    "search": ("trained", "wrong labels"),
    "search_regression": ("regression", "wrong labels with a head fitted anew"),
}
LABELS = {
    "trained": "as it was trained",
    "search": "beta searched",
    "regression": "head fitted anew",
    "search_regression": "head fitted anew, beta searched",
}


def measure(seed: int, betas: Sequence[float], steps: int = 600) -> dict[str, Any]:
    """One repetition: the network as it was trained, and with beta chosen on noisy samples that it never saw.

    Returns:
        ``rows``: test errors on clean labels; ``searches``: every beta with its validation error, with the head as it
        was and with one that is fitted anew on the noisy training samples; ``fitted``: training error.
    """
    chance = generator(seed, "curvature", "noise")
    training, validation, test = small.random_parts(small.digits(), [TRAINING, VALIDATION], chance)
    training, validation = (corrupted(*part[:2], NOISE, CLASSES, chance) for part in (training, validation))
    model = small.fit(lambda: small.network(64, 64, 3, CLASSES), training, small.recipe(steps, 100, 1e-2), seed)
    example = (test.x[:2],)
    tuned, body = (replace_relus(part, example=example).model for part in (model, without_head(model)[0]))

    def at(beta: float, evaluated=validation) -> float:
        set_beta(tuned, beta)
        return small.error(tuned, evaluated)

    def fitted_at(beta: float, evaluated=validation) -> float:
        return small.probe_error(body, beta, training, evaluated)

    rows, searches = {}, {}
    for (name, (baseline, _)), score in zip(PAIRS.items(), (at, fitted_at), strict=True):
        choice = small.choose(betas, score)
        rows[baseline] = {"test": score(1.0, test), "chosen": 1.0, "tried": 1}
        beta, tried = choice["chosen"], len(choice["betas"])
        rows[name] = {"test": score(beta, test), "chosen": beta, "tried": tried}
        searches[name] = choice
    counts = [TRAINING, VALIDATION, len(test.y)]
    return {"rows": rows, "searches": searches, "fitted": small.error(model, training), "sizes": counts}


def summarise(results: section.Results) -> section.Section:
    """Wrong labels learned by heart."""
    tests = {name: [result["rows"][name]["test"] for result in results] for name in LABELS}
    changes = {name: section.fewer(tests[name], tests[baseline]) for name, (baseline, _) in PAIRS.items()}
    rows = []
    for name, label in LABELS.items():
        chosen = section.chosen([result["rows"][name]["chosen"] for result in results])
        error, change = section.percent(tests[name]), section.gain(changes.get(name))
        rows.append((label, error, change, str(results[0]["rows"][name]["tried"]), Cell(chosen, "quiet")))
    title = "Wrong labels: a network trained on 40 % wrong labels"
    columns = "network|test error (%)|fewer errors than at beta = 1|candidates|beta"
    headings = {"search": "head as trained", "search_regression": "head fitted anew"}
    curves = {label: [result["searches"][name] for result in results] for name, label in headings.items()}
    return section.Section(
        changes={label: changes[name] for name, (_, label) in PAIRS.items()},
        grids=[section.grid(title, columns, rows, results, section.CANDIDATES)],
        plots=[section.search_plot("noise", "Wrong labels", "Error on noisy validation samples", curves)],
        method=[
            f"Wrong labels: {section.sizes(results)} At the end of training the network got "
            f"{section.percent([result['fitted'] for result in results])} % of its own noisy labels wrong."
        ],
    )
