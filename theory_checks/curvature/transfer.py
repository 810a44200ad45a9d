"""A trained network on new classes: the search over beta beside four ways to fine-tune it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from steering.curvature import replace_relus, set_beta
from steering.reports.grid import Cell
from steering.theory_checks.curvature import plots, section
from steering.theory_checks.curvature.classification import Classification, error, network, outputs, recipe, trained
from steering.theory_checks.curvature.methods import LABELS, Method, available, learned, prepare, without_head
from steering.theory_checks.curvature.samples import Split, digits, of_classes, random_parts
from steering.theory_checks.curvature.search import choose, probe_error
from steering.training.seeds import derive, generator

LABELLED, VALIDATION = 60, 100  # samples of digits 5 to 9 to learn from, and to choose on
DIGITS = "a network that learned digits 0 to 4 is taught 5 to 9"
PROBES = {"regression": "linear probe, regression", "search": "curvature search, regression"}
METHOD = (
    "The two rows with regression fit the head by logistic regression (scikit-learn, C = 1), anew for every beta; "
    "the others train a new head and what the method learns by Adam with a cosine, each at the learning rate of "
    "lowest validation error. Batch norms keep their statistics. Learned curvature is one beta and one c for each "
    "channel; LoRA adds rank 1 to every layer but the head."
)


@dataclass(frozen=True)
class TransferOptions:
    """How the methods are trained and chosen between.

    Attributes:
        betas: of the search; 1 is always among them.
        learning_rates: of every method that is trained; the validation split chooses one for each.
        steps: gradient steps of each.
        batch: samples in a step, at most all.
        methods: that are trained.
        device: where.
    """

    betas: Sequence[float]
    learning_rates: Sequence[float] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    steps: int = 150
    batch: int = 60
    methods: Sequence[Method] = available()
    device: str = "cpu"


def measure(seed: int, options: TransferOptions) -> dict[str, Any]:
    """One repetition on digits: a network that learned 0 to 4 learns 5 to 9 from few labels."""
    chance = generator(seed, "curvature", "transfer")
    old, early = random_parts(of_classes(digits(), range(0, 5)), [700], chance)
    splits = random_parts(of_classes(digits(), range(5, 10)), [LABELLED, VALIDATION], chance)
    settings = recipe(300, 100, 3e-3, weight_decay=0.01)
    model = trained(Classification(lambda: network(64, 64, 3, 5), old, early, early, settings), settings, seed)
    body, head = without_head(model)
    return compare(body, head.in_features, 5, splits, options, seed) | {"pretraining_error": error(model, early)}


def compare(
    body: nn.Module, width: int, classes: int, splits: Sequence[Split], options: TransferOptions, seed: int
) -> dict[str, Any]:
    """Test errors of every way to learn new classes, each chosen on the validation split and tested once.

    Args:
        body: a trained network without its head; stays as it is.
        width: of its features.
        classes: number of new ones.
        splits: to learn from, to choose on, and to test on.
        options: what is tried.
        seed: of initial heads and the order of samples.

    Returns:
        ``rows`` by method: test and validation error, number of learned parameters, how many candidates the
        validation split chose between, and which one; ``search``: every beta with its validation error.
    """
    training, validation, test = splits
    tuned = replace_relus(body, 1.0, example=(training.x[:2],))
    backbone = tuned.model.to(options.device)
    choice = choose(options.betas, lambda beta: probe_error(backbone, beta, training, validation))
    parameters = (width + 1) * (classes if classes > 2 else 1)  # two classes need one score
    rows: dict[str, Any] = {}
    for name, beta, tried in (("regression", 1.0, 1), ("search", choice.chosen, len(choice.betas))):
        rows[name] = {
            "test": probe_error(backbone, beta, training, test),
            "validation": choice.validation[choice.betas.index(beta)],
            "tried": tried,
            "parameters": parameters + (name == "search"),
            "chosen": beta,
        }
    set_beta(backbone, 1.0)
    features = [Split(outputs(backbone, split.x), split.y) for split in splits]
    for method in options.methods:
        start, data = (nn.Identity(), features) if method == "probe" else (body, splits)  # a probe changes no feature
        rows[method] = _fine_tuned(partial(prepare, method, start, width, classes, data[0].x[:2]), data, options, seed)
    sites = {"replaced": [site.name for site in tuned.replaced], "missed": [vars(site) for site in tuned.missed]}
    return {"rows": rows, "search": vars(choice), "sizes": [len(split.y) for split in splits]} | sites


def _fine_tuned(start: Any, splits: Sequence[Split], options: TransferOptions, seed: int) -> dict[str, Any]:
    """One method at the learning rate that the validation split chooses."""
    training, validation, test = splits
    candidates: list[tuple[float, float, nn.Module]] = []
    for learning_rate in options.learning_rates:
        settings = recipe(options.steps, min(options.batch, len(training.y)), learning_rate)
        task = Classification(start, training, validation, test, settings)
        model = trained(task, settings, derive(seed, "teaching"), device=options.device)
        candidates.append((error(model, validation), learning_rate, model))
    validation_error, learning_rate, model = min(candidates, key=lambda candidate: candidate[:2])
    return {
        "test": error(model, test),
        "validation": validation_error,
        "tried": len(candidates),
        "parameters": learned(model),
        "chosen": learning_rate,
    }


def summarise(results: section.Results, title: str = DIGITS) -> section.Section:
    """New classes for a trained network, against a linear probe that is fitted like the method."""
    tests = {name: [result["rows"][name]["test"] for result in results] for name in results[0]["rows"]}
    labels = {name: {**PROBES, **LABELS}[name] for name in tests}
    rows, changes = [], {}
    for name, label in labels.items():
        of = [result["rows"][name] for result in results]
        chosen = f"{'beta' if name in PROBES else 'rate'} {section.chosen([row['chosen'] for row in of])}"
        probe = "regression" if name in PROBES else "probe"
        changes[name] = section.fewer(tests[name], tests[probe]) if probe in tests and name != probe else None
        error, tried = section.percent(tests[name]), str(of[0]["tried"])
        rows.append(
            (label, f"{of[0]['parameters']:,}", error, section.gain(changes[name]), tried, Cell(chosen, "quiet"))
        )
    best = min(tests, key=lambda name: sum(tests[name]))
    columns = "method|learned|test error (%)|fewer errors than its probe|candidates|chosen"
    curves = {"new classes": [result["search"] for result in results]}
    return section.Section(
        changes={"new classes": changes["search"]},
        findings=[f"Of all ways to teach new classes, {labels[best]} made the fewest test errors."],
        cautions=section.missed(results),
        grids=[section.grid(f"New classes: {title}", columns, rows, results, section.CANDIDATES)],
        plots=[plots.search("search", "What the search saw", "Validation error", curves)],
        method=[f"New classes: {title}. {section.sizes(results)} {METHOD}"],
    )
