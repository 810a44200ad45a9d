"""A table of one's own, and whatever model was fitted before as reference."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.references.files import read_reference
from steering.references.predictions import predicted
from steering.references.table import LossTable
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.tasks.in_memory import check_noise, corrupted, frozen_linear, logistic_regression
from steering.tasks.tabular.table import Kind, Table, features, for_estimator, read_table, table_of
from steering.training.loader import ShuffledLoader
from steering.training.seeds import generator

__all__ = ["Tabular", "from_arrays"]

ARMS = {
    "erm": Arm(rule="uniform", subtract=False),
    "dro": Arm(rule="cvar(alpha=0.9)", subtract=False),
    "drrho_kl": Arm(rule="kl(temperature=1)", reference_scale=1.0),
    "drrho_cvar": Arm(rule="cvar(alpha=0.7)", reference_scale=1.0),
}


def from_arrays(X: Any, y: Any, *, reference: Any = None, **options: Any) -> "Tabular":
    """A task on one's own arrays.

    Args:
        X: ``[n, columns]`` numbers, or a DataFrame that may have texts.
        y: ``[n]``, labels of any type or numbers.
        reference: a fitted estimator of X and y, or losses by row; None fits one on a share of the rows.
        options: as of ``Tabular``.

    Raises:
        UserError: arrays, reference or options do not fit.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.linear_model import LogisticRegression
        >>> X, y = load_wine(return_X_y=True)
        >>> from_arrays(X, y, reference=LogisticRegression(max_iter=5000).fit(X[:60], y[:60])).size
        178
    """
    return Tabular(data=table_of(X, y), ref=reference, **options)


@dataclass(frozen=True)
class Tabular:
    """Your own table, CSV or Parquet, and your own model as reference.

    The ids of samples are the rows of the table, from 0 on, so that losses by row are a reference. A repetition draws
    which rows train, test and, without a reference of yours, fit one: those rows the target never sees.
    docs/tasks.md has more.

    Args:
        data: a file, one of scikit-learn's sets (breast_cancer, diabetes, digits, iris, wine), or a Table.
        label: column of a file that is predicted.
        ref: fitted model, ``sklearn:model.skops``, or losses by row, ``losses.parquet``; or these themselves.
        kind: classification or regression; by default what the labels look like.
        model: the target, ``mlp`` (one hidden layer) or ``linear``.
        hidden: units of the mlp.
        test_share: of the rows, which are never trained on.
        reference_share: of the rows, which fit the reference where none is given.
        noise: share of the training labels that are replaced, to see what that does.
        seed: of split and noise; repetition s of a run uses seed + s.
    """

    data: Any = "breast_cancer"
    label: str | None = None
    ref: Any = None
    kind: Kind | None = None
    model: Literal["mlp", "linear"] = "mlp"
    hidden: int = 64
    test_share: float = 0.3
    reference_share: float = 0.2
    noise: float = 0.0
    seed: int = 0

    rows = 1

    def __post_init__(self):
        object.__setattr__(self, "_cache", {})
        check_noise("tabular", self.noise)
        if self.model not in ("mlp", "linear") or self.hidden < 1:
            raise UserError(f"tabular has the models linear and mlp(hidden=1 ...), got {self.model!r}, {self.hidden}")
        shares = self.test_share, self.reference_share
        if min(shares) <= 0 or sum(shares) >= 1:
            raise UserError(f"test_share and reference_share are above 0 and below 1 in all, got {shares}")
        if self.kind not in (None, "classification", "regression"):
            raise UserError(f"kind is classification or regression, got {self.kind!r}")
        if not isinstance(self.data, str | Table):
            raise UserError(
                f"data is the name of a file or set, got a {type(self.data).__name__}: use from_arrays(X, y)"
            )

    _cache: ClassVar[dict[str, Any]]  # of each task its own, and of its repetitions

    # -- the table, and what is drawn of it -----------------------------------------------------------------

    @property
    def table(self) -> Table:
        return self._once(
            "table", lambda: read_table(self.data, self.label) if isinstance(self.data, str) else self.data
        )

    @property
    def fingerprint(self) -> str:
        """Of the data, which losses of a file are compared with."""
        return self._once("fingerprint", lambda: self.table.fingerprint)

    @property
    def classifies(self) -> bool:
        return (self.kind or self.table.kind()) == "classification"

    @property
    def classes(self) -> np.ndarray:
        return np.unique(self.table.label)

    @property
    def size(self) -> int:
        return len(self.table.frame)

    @cached_property
    def split(self) -> dict[str, np.ndarray]:
        """Rows by what they are for: train, reference, test."""
        order = torch.randperm(self.size, generator=generator(self.seed, "tabular")).numpy()
        test, seen = round(self.size * self.test_share), round(self.size * self.reference_share) * (self.ref is None)
        test, seen = max(1, test), max(1, seen) if self.ref is None else 0
        return {"test": order[:test], "reference": order[test : test + seen], "train": order[test + seen :]}

    @property
    def population(self) -> int:
        return len(self.split["train"])

    @cached_property
    def x(self) -> Tensor:
        """``[rows, features]`` of all rows."""
        return torch.from_numpy(features(self.table, self.split["train"]))

    @cached_property
    def y(self) -> Tensor:
        """``[rows]`` right labels: numbers of the classes, or standard deviations from the training mean."""
        if self.classifies:
            return torch.from_numpy(np.searchsorted(self.classes, self.table.label))
        if self.table.label.dtype.kind not in "biuf":
            raise UserError(f"a regression needs numbers as labels, {self.table.name} has texts")
        return torch.from_numpy((self.table.label.astype(np.float64) - self._mean) / self._deviation).float()

    @property
    def _mean(self) -> float:
        return float(self.table.label[self.split["train"]].mean())

    @property
    def _deviation(self) -> float:
        return float(self.table.label[self.split["train"]].std()) or 1.0

    @cached_property
    def _noisy(self) -> tuple[Tensor, Tensor]:
        """Labels ``[rows]`` of which a share of the training rows has another, and which these are."""
        chance, y, train = generator(self.seed, "tabular", "noise"), self.y.clone(), self.split["train"]
        wrong = torch.zeros(self.size, dtype=torch.bool)
        if self.noise and self.classifies:
            part = corrupted(self.x[train], y[train], self.noise, len(self.classes), chance)
            y[train], wrong[train] = part.y, part.wrong
        elif self.noise:
            chosen = torch.rand(len(train), generator=chance) < self.noise
            wrong[train] = chosen
            y[train] = torch.where(chosen, y[train][torch.randperm(len(train), generator=chance)], y[train])
        return y, wrong

    # -- what a task has ------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        batch = max(1, min(128, self.population // 2))
        return Recipe(
            steps=300, batch=batch, optimizer="adamw", learning_rate=0.01, weight_decay=0.01, seeds=5,
            evaluate_every=50, arms=ARMS, baseline="erm",
        )  # fmt: skip

    @property
    def metrics(self) -> Mapping[str, Metric]:
        if not self.classifies:
            return {"r2": Metric(label="R^2 on the test rows", better="high", chance=0.0)}
        counts = np.unique(self.table.label, return_counts=True)[1]
        chance = float(1 - counts.max() / counts.sum())
        return {"error": Metric(label="test error", better="low", chance=chance, percent=True)}

    def seeded(self, seed: int) -> Self:
        made = replace(self, seed=self.seed + seed)
        made._cache.update(self._cache)  # the table is read once
        return made

    def target(self) -> nn.Module:
        outputs, inputs = len(self.classes) if self.classifies else 1, self.x.shape[1]
        if self.model == "linear":
            return nn.Linear(inputs, outputs)
        return nn.Sequential(nn.Linear(inputs, self.hidden), nn.ReLU(), nn.Linear(self.hidden, outputs))

    def load(self, ids: Tensor, _: torch.Generator | None = None) -> Batch:
        """The samples of ``[n]`` rows, whatever they are for."""
        y, wrong = self._noisy
        return Batch(ids, {"x": self.x[ids], "y": y[ids], "row": ids}, {"wrong": wrong[ids]} if self.noise else {})

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        train = torch.from_numpy(self.split["train"])
        return ShuffledLoader(
            lambda ids, chance: self.load(train[ids], chance), size=len(train), batch=batch, seed=seed
        )

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The test rows, with their own labels."""
        for ids in torch.from_numpy(self.split["test"]).split(batch):
            yield replace(self.load(ids), ids=torch.arange(len(ids)))

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """Cross-entropy; for a regression squared errors in variances of the training labels."""
        outputs = self._outputs(model, batch["x"], batch["row"])
        if self.classifies:
            return Losses(cross_entropy(outputs, batch["y"], reduction="none"), outputs=outputs)
        return Losses((outputs[:, 0] - batch["y"]).square())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        rows = torch.from_numpy(self.split["test"]).to(device)
        y = self.y.to(device)[rows]
        outputs = self._outputs(model, self.x.to(device)[rows], rows)
        if self.classifies:
            return {"error": float((outputs.argmax(-1) != y).double().mean())}
        return {"r2": float(1 - (outputs[:, 0] - y).square().sum() / (y - y.mean()).square().sum())}

    def _outputs(self, model: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
        return model(rows) if isinstance(model, Fitted) else model(x)

    def reference(self) -> Any:
        """The user's own, or else a linear one that was fitted on its share of the rows."""
        if self.ref is None:
            return self._own_reference()
        reference = self._once("reference", lambda: read_reference(self.ref) if isinstance(self.ref, str) else self.ref)
        if isinstance(reference, LossTable):
            of = reference.provenance.get("data", self.fingerprint)
            if of != self.fingerprint:
                raise UserError(f"the losses {self.ref} are of other data ({of}) than {self.table!r}: score it anew")
            return reference
        if not hasattr(reference, "predict"):
            return reference
        return self._once(f"fitted {self._mean if not self.classifies else ''}", lambda: self._fitted(reference))

    def _own_reference(self) -> nn.Module:
        rows = self.split["reference"]
        x, y = self.x[rows], self.y[rows]
        if self.classifies:
            return logistic_regression(self.table.name, x, y, len(self.classes), 0.1)
        ridge = Ridge(alpha=10.0).fit(x.numpy(), y.numpy())
        return frozen_linear(torch.from_numpy(ridge.coef_).float()[None], torch.tensor([float(ridge.intercept_)]))

    def _fitted(self, estimator: Any) -> "Fitted":
        """A fitted estimator as a module of rows, for all of which it predicts once."""
        predictions = predicted(estimator, for_estimator(self.table, estimator))
        if self.classifies != hasattr(estimator, "predict_proba"):
            wanted = "a classifier with predict_proba" if self.classifies else "a regressor, without predict_proba"
            raise UserError(f"the labels of {self.table.name} need {wanted} as reference, got {estimator!r:.80}")
        if not self.classifies:
            return Fitted(torch.from_numpy((predictions.reshape(self.size, -1) - self._mean) / self._deviation).float())
        classes = np.asarray(getattr(estimator, "classes_", np.arange(predictions.shape[1])))
        classes = classes.astype(str) if self.table.label.dtype.kind == "U" else classes
        lacking = [label for label in self.classes if label not in classes]
        if lacking:
            raise UserError(f"the reference never saw the label {lacking[0]}, but {classes[:8].tolist()}")
        columns = [int(np.flatnonzero(classes == label)[0]) for label in self.classes]
        least = np.finfo(predictions.dtype).eps
        return Fitted(torch.from_numpy(np.log(predictions[:, columns].clip(min=least))).float())

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What is made once for all repetitions."""
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]


class Fitted(nn.Module):
    """What a fitted estimator predicts of every row: log probabilities ``[rows, classes]``, or ``[rows, 1]``."""

    def __init__(self, predictions: Tensor):
        super().__init__()
        self.predictions = nn.Parameter(predictions, requires_grad=False)
        self.eval()

    def forward(self, rows: Tensor) -> Tensor:
        return self.predictions[rows.to(self.predictions.device)]
