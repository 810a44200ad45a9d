"""Made-up runs to present: the numbers of a summary without the training."""

from collections.abc import Callable

import pytest

from steering.runs.summary import ArmSummary, Result, Summary
from steering.settings import Metric

ACCURACY = {"accuracy": Metric(label="Accuracy", chance=0.1, percent=True)}


def make_arm(values: list[float], metric: str = "accuracy", samples: int = 1280, **settings) -> ArmSummary:
    """An arm with one value of one metric a seed."""
    results = [
        Result(seed=seed, metrics={metric: value}, samples=samples, candidates=samples, facts={"wrong": 0.3})
        for seed, value in enumerate(values)
    ]
    settings.setdefault("rule", "uniform")
    return ArmSummary(results=results, **settings)


def make_summary(
    arms: dict[str, ArmSummary], metrics: dict[str, Metric] | None = None, baseline: str = "erm", **settings
) -> Summary:
    """A run with these arms."""
    about = {
        "task": "digits(noise=0.4)",
        "command": "steer run digits",
        "started": "2026-01-02T03:04:05",
        "seconds": 9,
    }
    return Summary(**(about | settings), baseline=baseline, metrics=metrics or ACCURACY, arms=arms)


@pytest.fixture
def arm() -> Callable[..., ArmSummary]:
    return make_arm


@pytest.fixture
def run() -> Callable[..., Summary]:
    return make_summary


@pytest.fixture
def two_arms() -> Callable[[list[float], list[float]], Summary]:
    """A plain baseline ``erm`` and a steered arm ``kl``, by their accuracies."""

    def build(erm: list[float], kl: list[float]) -> Summary:
        return make_summary({"erm": make_arm(erm), "kl": make_arm(kl, rule="kl(rho=80)", subtract=True)})

    return build


@pytest.fixture
def records() -> list[dict]:
    """Lines of metrics.jsonl of two arms with two seeds, evaluated twice."""
    lines = []
    for arm in ("erm", "kl"):
        for seed in range(2):
            for step in range(1, 101):
                where = {"arm": arm, "seed": seed, "step": step, "samples": 64 * step}
                line = where | {
                    "loss": 1.0,
                    "effective": 0.5,
                    "scale": None,
                    "facts": {"wrong": 0.3 + seed / 100},
                }
                lines.append(line | ({"scale": 0.01 * step} if arm == "kl" else {}))
                if step % 50 == 0:
                    lines.append(where | {"evaluation": {"accuracy": 0.5 + step / 1000}})
    return lines
