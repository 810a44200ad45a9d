"""A trained network on new classes: the search over beta beside four ways to fine-tune it."""

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Self

from torch import Tensor, nn

from steering.curvature import replace_relus, set_beta
from steering.errors import UserError
from steering.reports.grid import Cell
from steering.tasks.in_memory import Samples, clean
from steering.theory_checks.curvature import section, small
from steering.training.seeds import derive, generator

LABELLED, VALIDATION = 60, 100  # samples of digits 5 to 9 to learn from, and to choose on
DIGITS = "a network that learned digits 0 to 4 is taught 5 to 9"
FIELDS = ("test", "validation", "tried", "parameters", "chosen")  # of one method in one repetition
PROBES = {"regression": "linear probe, regression", "search": "curvature search, regression"}

LABELS = {  # of the methods
    "probe": "linear probe",
    "curvature": "trainable curvature",
    "low_rank": "LoRA, rank 1",
    "full": "full fine-tuning",
}
BETA = 0.8  # where learned units begin


def available() -> tuple[str, ...]:
    """The methods whose packages are installed."""
    return tuple(method for method in LABELS if method != "low_rank" or find_spec("peft"))


class FineTuned(nn.Sequential):
    """A backbone and a new head; batch norms keep the statistics they came with, whatever is learned."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.training = False
        return self


def prepare(method: str, backbone: nn.Module, width: int, classes: int, example: Tensor) -> FineTuned:
    """A copy of a backbone with a new head, where what the method learns takes a gradient and nothing else does.

    Args:
        method: ``probe`` learns the head alone; ``curvature`` beta and c of every channel as well; ``low_rank`` adds
            LoRA (Hu et al. 2022) to every linear layer and every plain convolution; ``full`` learns everything.
        backbone: gives features ``[n, width]``.
        width, classes: of the head.
        example: input of the backbone, to count channels with.

    Raises:
        UserError: ``low_rank`` without the package peft.
    """
    body = copy.deepcopy(backbone).requires_grad_(method == "full")
    if method == "curvature":
        body = replace_relus(body, BETA, trainable=True, per_channel=True, example=(example,)).model
    elif method == "low_rank":
        body = _with_low_rank(body)
    return FineTuned(OrderedDict(backbone=body, head=nn.Linear(width, classes)))


def _with_low_rank(model: nn.Module) -> nn.Module:
    """Adds LoRA of rank 1, which begins at zero; peft knows neither groups nor dilation of convolutions."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("method low_rank needs peft: pip install 'model-steering[peft]', or leave it out") from None

    def fits(layer: nn.Module) -> bool:
        plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1)
        return plain or isinstance(layer, nn.Linear)

    # As a pattern, because peft compares a list with the ends of names.
    pattern = "|".join(re.escape(name) for name, layer in model.named_modules() if fits(layer))
    return inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=pattern), model)


def without_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """A copy of a network up to its last linear layer, and that layer; UserError if there is none."""
    body = copy.deepcopy(model)
    names = [name for name, part in body.named_modules() if isinstance(part, nn.Linear)]
    if not names or not names[-1]:
        raise UserError("the model has no linear layer to take for its head: give one that ends with nn.Linear")
    head = body.get_submodule(names[-1])
    assert isinstance(head, nn.Linear)
    body.set_submodule(names[-1], nn.Identity())
    return body, head


@dataclass(frozen=True)
class TransferOptions:
    """How the methods are trained and chosen between."""

    betas: Sequence[float]  # of the search; 1 is always among them
    learning_rates: Sequence[float] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # the validation split chooses one for each method
    steps: int = 150
    batch: int = 60  # samples in a step, at most all
    methods: Sequence[str] = available()
    device: str = "cpu"


def measure(seed: int, options: TransferOptions) -> dict[str, Any]:
    """One repetition on digits: a network that learned 0 to 4 learns 5 to 9 from few labels."""
    chance = generator(seed, "curvature", "transfer")
    old, early = small.random_parts(small.digits(0, 4), [700], chance)
    splits = small.random_parts(small.digits(5, 9), [LABELLED, VALIDATION], chance)
    model = small.fit(lambda: small.network(64, 64, 3, 5), old, small.recipe(300, 100, 3e-3, weight_decay=0.01), seed)
    body, head = without_head(model)
    return compare(body, head.in_features, 5, splits, options, seed) | {"pretraining_error": small.error(model, early)}


def compare(
    body: nn.Module, width: int, classes: int, splits: Sequence[Samples], options: TransferOptions, seed: int
) -> dict[str, Any]:
    """Test errors of every way to learn new classes, each chosen on the validation split and tested once.

    Args:
        body: a trained network without its head; stays as it is.
        width, classes: of the new heads.
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
    choice = small.choose(options.betas, lambda beta: small.probe_error(backbone, beta, training, validation))
    parameters = (width + 1) * (classes if classes > 2 else 1)  # two classes need one score
    rows: dict[str, Any] = {}
    for name, beta, tried in (("regression", 1.0, 1), ("search", choice["chosen"], len(choice["betas"]))):
        errors = small.probe_error(backbone, beta, training, test), choice["validation"][choice["betas"].index(beta)]
        rows[name] = dict(zip(FIELDS, (*errors, tried, parameters + (name == "search"), beta), strict=True))
    set_beta(backbone, 1.0)
    features = [clean(small.outputs(backbone, part.x), part.y) for part in splits]
    for method in options.methods:
        start, data = (nn.Identity(), features) if method == "probe" else (body, splits)  # a probe changes no feature
        rows[method] = _fine_tuned(partial(prepare, method, start, width, classes, data[0].x[:2]), data, options, seed)
    sites = {"replaced": [site.name for site in tuned.replaced], "missed": [vars(site) for site in tuned.missed]}
    return {"rows": rows, "search": choice, "sizes": [len(split.y) for split in splits]} | sites


def _fine_tuned(start: Any, splits: Sequence[Samples], options: TransferOptions, seed: int) -> dict[str, Any]:
    """One method at the learning rate that the validation split chooses."""
    training, validation, test = splits
    candidates = []
    for learning_rate in options.learning_rates:
        settings = small.recipe(options.steps, min(options.batch, len(training.y)), learning_rate)
        model = small.fit(start, training, settings, derive(seed, "teaching"), device=options.device)
        candidates.append((small.error(model, validation), learning_rate, model))
    validation_error, learning_rate, model = min(candidates, key=lambda candidate: candidate[:2])
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    values = small.error(model, test), validation_error, len(candidates), learned, learning_rate
    return dict(zip(FIELDS, values, strict=True))


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
        size, error, tried = f"{of[0]['parameters']:,}", section.percent(tests[name]), str(of[0]["tried"])
        rows.append((label, size, error, section.gain(changes[name]), tried, Cell(chosen, "quiet")))
    best = min(tests, key=lambda name: sum(tests[name]))
    columns = "method|learned|test error (%)|fewer errors than its probe|candidates|chosen"
    curves = {"new classes": [result["search"] for result in results]}
    return section.Section(
        changes={"new classes": changes["search"]},
        findings=[f"Of all ways to teach new classes, {labels[best]} made the fewest test errors."],
        cautions=section.missed(results),
        grids=[section.grid(f"New classes: {title}", columns, rows, results, section.CANDIDATES)],
        plots=[section.search_plot("search", "What the search saw", "Validation error", curves)],
        method=[f"New classes: {title}. {section.sizes(results)}"],
    )
