"""Ranks agree on what they hold before they exchange tensors, so that none waits for another that failed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from steering.distributed import all_gather_numbers, world_size
from steering.errors import Elsewhere, UserError
from steering.rules.rule import Rule
from steering.steered import Steered

KINDS = ("nothing", "one row over all processes", "rows", "pairs")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Header(NamedTuple):
    """Whole numbers that ranks tell each other.

    Attributes:
        kind: index in KINDS; 0 from a rank that failed.
        dtype: index in DTYPES.
        reference: 1 with reference losses.
        masked: 1 with a mask.
        rows, columns: shape of the losses; pairs and their width.
        last: groups; the reference's width for pairs.
        base: 0 without base weights, 1 with one for every entry, 2 with one for every row.
    """

    kind: int = 0
    dtype: int = 0
    reference: int = 0
    masked: int = 0
    rows: int = 0
    columns: int = 0
    last: int = 0
    base: int = 0


class Matrix(Protocol):
    """The losses of a batch and of its reference, in rows, as the engine sees them: LossRows or PairRows.

    Attributes:
        shared: whether every rank has a part of the same rows, whose duals are the same on every rank.
    """

    @property
    def shared(self) -> bool: ...
    def header(self) -> Header: ...
    def agreed(self, headers: Sequence[Header]) -> "Matrix": ...
    def variance_sample(self) -> tuple[Tensor, Tensor, Tensor | None] | None: ...
    def memory_index(self, ids: Tensor | None) -> Tensor: ...
    def fresh(self, rule: Rule, scale: Tensor | float, population: int | None, remembered: Tensor | None) -> Any: ...
    def filled(self) -> Tensor: ...
    def steer(
        self, rule: Rule, fresh: Any, dual: Tensor | None, scale: Tensor, average: Any, *, frozen: bool
    ) -> Steered: ...


def agree(make: Callable[[], Matrix]) -> Matrix:
    """What ``make`` gives, as all ranks see it.

    Raises:
        UserError, Elsewhere: on every rank, where one of them failed or holds something else than the others.
    """
    if world_size() == 1:
        matrix = make()
        return matrix.agreed([matrix.header()])
    matrix, header, trouble = None, Header(), None
    try:
        matrix = make()
        header = matrix.header()
    except Exception as error:  # whatever it is, the others must hear of it
        trouble = error
    headers = [Header(*numbers) for numbers in all_gather_numbers(header)]
    if trouble is not None:
        if isinstance(trouble, UserError):
            trouble.local = True
        raise trouble
    if matrix is None or any(not other.kind for other in headers):
        raise Elsewhere("another process of this run failed and says why")
    filled = [other for other in headers if other.rows * other.columns] or headers
    for what, values in (
        ("losses of one kind", [KINDS[other.kind] for other in headers]),
        ("reference losses, or none of them", ["with" if other.reference else "without" for other in headers]),
        ("base weights, or none of them", [("without", "of entries", "of rows")[other.base] for other in filled]),
        ("losses of one precision", [str(DTYPES[other.dtype])[6:] for other in filled]),
    ):
        if len(set(values)) > 1:
            raise UserError(f"all processes give {what}, got {', '.join(values)} (by rank)")
    return matrix.agreed(headers)
