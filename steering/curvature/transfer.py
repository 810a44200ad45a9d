"""A trained network taught new classes: the search over beta beside four ways to train it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from steering.curvature.classification import Classification, Split, answers, error, recipe, trained
from steering.curvature.methods import METHODS, Method, learned, network, prepare, without_head
from steering.curvature.replace import replace_relus
from steering.curvature.samples import digits, drawn, of_classes
from steering.curvature.search import Probe, search_with_probe
from steering.curvature.unit import set_beta
from steering.training.seeds import derive, generator

LABELS, VALIDATION = 60, 100  # samples of digits 5 to 9 to learn from, and to choose on
WIDTH, DEPTH = 64, 3


@dataclass(frozen=True)
class Teaching:
    """How the methods are trained and chosen between.

    Attributes:
        betas: of the search; 1 is always among them.
        rates: learning rates of every method that is trained; the validation split chooses one for each.
        steps: gradient steps of each.
        batch: samples in a step, at most all.
        methods: that are trained.
        device: where.
    """

    betas: Sequence[float]
    rates: Sequence[float] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    steps: int = 150
    batch: int = 60
    methods: Sequence[Method] = METHODS
    device: str = "cpu"


def measure(seed: int, teaching: Teaching) -> dict[str, Any]:
    """One repetition on digits: a network that learned 0 to 4 is taught 5 to 9 with few labels."""
    chance = generator(seed, "curvature", "transfer")
    old, early = drawn(of_classes(digits(), range(0, 5)), [700], chance)
    training, validation, test = drawn(of_classes(digits(), range(5, 10)), [LABELS, VALIDATION], chance)
    settings = recipe(300, 100, 3e-3, weight_decay=0.01)
    task = Classification(lambda: network(64, WIDTH, DEPTH, 5), old, early, early, settings)
    model = trained(task, settings, seed)
    body, head = without_head(model)
    found = compare(body, head.in_features, 5, (training, validation, test), teaching, seed)
    return found | {"pretraining_error": error(model, early)}


def compare(
    body: nn.Module, width: int, classes: int, splits: tuple[Split, Split, Split], teaching: Teaching, seed: int
) -> dict[str, Any]:
    """Test errors of every way to teach new classes, each chosen on the validation split and tested once.

    Args:
        body: a trained network without its head; stays as it is.
        width: of its features.
        classes: to be told apart.
        splits: to learn from, to choose on, and to test on.
        teaching: what is tried.
        seed: of initial heads and the order of samples.

    Returns:
        ``rows`` by method: test and validation error, number of learned parameters, how many candidates the
        validation split chose between, and which one; ``search``: every beta with its validation error.
    """
    training, validation, test = splits
    tuned = replace_relus(body, 1.0, example=(training.x[:2],))
    tuned.model.to(teaching.device)
    choice = search_with_probe(tuned.model, teaching.betas, training, validation)
    rows: dict[str, Any] = {}
    for name, beta, tried in (("regression", 1.0, 1), ("search", choice.chosen, len(choice.betas))):
        set_beta(tuned.model, beta)
        probe = Probe(tuned.model, training)
        scored = choice.scores[choice.betas.index(beta)]
        row = {"test": probe.error(tuned.model, test), "validation": scored, "tried": tried}
        rows[name] = row | {"parameters": probe.parameters + (name == "search"), "chosen": f"beta {beta:g}"}
    set_beta(tuned.model, 1.0)
    features = [Split(answers(tuned.model, split.x), split.y) for split in splits]
    for method in teaching.methods:
        if method == "probe":  # which never changes the features
            rows[method] = _taught(method, nn.Identity(), width, classes, features, teaching, seed)
        else:
            rows[method] = _taught(method, body, width, classes, splits, teaching, seed)
    search = {"betas": choice.betas, "validation": choice.scores, "chosen": choice.chosen}
    places = {"replaced": [site.name for site in tuned.replaced], "missed": [vars(site) for site in tuned.missed]}
    return {"rows": rows, "search": search, "sizes": [len(split.y) for split in splits]} | places


def _taught(
    method: Method, body: nn.Module, width: int, classes: int, splits, teaching: Teaching, seed: int
) -> dict[str, Any]:
    """One method at the learning rate that the validation split chooses."""
    training, validation, test = splits
    start = partial(prepare, method, body, width, classes, training.x[:2])
    found: list[tuple[float, float, nn.Module]] = []
    for rate in teaching.rates:
        settings = recipe(teaching.steps, min(teaching.batch, len(training.y)), rate)
        task = Classification(start, training, validation, test, settings)
        model = trained(task, settings, derive(seed, "teaching"), device=teaching.device)
        found.append((error(model, validation), rate, model))
    scored, rate, model = min(found, key=lambda tried: tried[:2])
    return {
        "test": error(model, test),
        "validation": scored,
        "tried": len(found),
        "parameters": learned(model),
        "chosen": f"rate {rate:g}",
    }
