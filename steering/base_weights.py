"""Weights of samples by id that divergences are taken to, given or fitted to what a reference says."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steering import atomic_files
from steering.arrange import tensor_of
from steering.auto.weights import fit_weights
from steering.contrastive.pairs import Pairs
from steering.errors import UserError


class BaseWeights:
    """Base weights by sample id.

    Args:
        table: ``[size]`` numbers of at least 0; None where there are none.
        sentence: how they came about.

    Attributes:
        table: ``[size]`` float64, or None.
    """

    def __init__(self, table: Any = None, sentence: str = ""):
        self.table: Tensor | None = None if table is None else tensor_of(table, "base weights").double()
        self.sentence = sentence

    def save(self, path: Path) -> None:
        """Writes the weights and the sentence as safetensors."""
        assert self.table is not None
        atomic_files.write(path, save({"weights": self.table.cpu()}, {"sentence": self.sentence}))

    @classmethod
    def load(cls, path: Path) -> "BaseWeights":
        """What ``save`` wrote.

        Raises:
            UserError: the file is no such file.
        """
        try:
            with safe_open(path, "pt") as file:
                return cls(file.get_tensor("weights"), (file.metadata() or {}).get("sentence", ""))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} holds no base weights ({error}): delete it to estimate them anew") from None

    def fit(self, scores: "Tensor | Pairs", labels: Any = None, *, ids: Any = None, size: int | None = None) -> str:
        """Fits the weights to what a reference says of all training samples.

        Args:
            scores: of the reference, before softmax, ``[n, classes]`` with ``labels``; or its Pairs of all samples.
            labels: ``[n]`` whole numbers, as they are, right or wrong.
            ids: ``[n]`` sample ids, from 0 to n - 1 in their order if not given.
            size: number of ids there are; samples without scores keep the weight 1.

        Returns:
            What was found, in a sentence.

        Raises:
            UserError: shapes that do not fit, or scores that are not finite.

        Example:
            >>> scores = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 5
            >>> labels = torch.where(torch.arange(500) < 100, (scores.argmax(-1) + 1) % 4, scores.argmax(-1))
            >>> weights = BaseWeights()
            >>> weights.fit(scores, labels)
            '26 % of labels look wrong; 8 % of the weight is left on them'
            >>> weights.of([7, 400]).round(decimals=1)  # a wrong label, and a right one
            tensor([0.0000, 1.3000], dtype=torch.float64)
        """
        fitted = fit_weights(scores, None if labels is None else tensor_of(labels, "labels"))
        index = torch.arange(len(fitted.weights)) if ids is None else tensor_of(ids, "ids").long().cpu()
        self.table = torch.ones(max(size or 0, int(index.max()) + 1), dtype=torch.float64)
        self.table[index] = fitted.weights.cpu()
        self.sentence = fitted.sentence
        return fitted.sentence

    def of(self, ids: Any, rule: object = None) -> Tensor | None:
        """The weights of ``[n]`` ids; None where there are none.

        Raises:
            UserError: the rule needs weights and there are none, or ids that are none of theirs.
        """
        if self.table is None:
            if getattr(rule, "needs_base", False):
                raise UserError(f"{rule!r} has no weights yet: steerer.fit(scores, labels) before the first call")
            return None
        if ids is None:
            raise UserError("base weights by id need ids: steerer(..., ids=ids)")
        index = tensor_of(ids, "ids").long()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self.table):
            raise UserError(f"base weights are of the ids 0 to {len(self.table) - 1}, got {int(index.max())}")
        self.table = self.table.to(index.device)
        return self.table[index]
