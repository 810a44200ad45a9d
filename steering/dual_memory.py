"""The memory of a Steerer: one dual per id."""

import torch
from torch import Tensor

from steering.distributed import barrier, first_on_node, node_shared_memory, world_size
from steering.errors import UserError

NEAR = 1 << 30  # bytes: a larger table does not lie beside the duals but once a machine, in shared memory


class DualMemory:
    """Remembers the dual of every row as a moving average, by id; the same on every rank.

    For KL per anchor this is the paper's table u (SogCLR, FastCLIP, DRRho-CLIP), in units of the loss.

    Args:
        size: number of rows worth remembering: 1 when the row is the data set, 2 n for a contrastive task
            (left and right anchor of pair i at 2 i and 2 i + 1, so that the memory can grow).
        gamma: weight of the new dual, above 0 and at most 1 (the paper's gamma). 1 remembers nothing.
            May be changed between steps.
        keep: remembers duals at a gamma of 1, too, for a gamma that will fall.
    """

    def __init__(self, size: int = 1, *, gamma: float = 1.0, keep: bool = False):
        if size < 1:
            raise UserError(f"DualMemory needs a size of at least 1, got {size}")
        self.size, self.keep = size, keep
        self.gamma = gamma
        self.table: Tensor | None = None  # [size, width]; NaN where nothing was written yet

    @property
    def gamma(self) -> float:
        return self._gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        if not 0 < value <= 1:
            raise UserError(f"the gamma of a moving average lies above 0 and at most 1, got {value:g}")
        self._gamma = float(value)

    def read(self, ids: Tensor) -> Tensor | None:
        """Remembered duals, ``[rows] -> [rows, width]``, NaN where unset; None before the first write."""
        if self.table is None:
            return None
        self.check(ids)
        if not self._shared and self.table.device != ids.device and self.table.nbytes <= NEAR:
            self.table = self.table.to(ids.device)  # of a checkpoint
        return self.table[ids.to(self.table.device)].to(ids.device)

    def write(self, ids: Tensor, duals: Tensor, counted: Tensor | None = None) -> None:
        """Remembers ``[rows, width]`` under ``[rows]`` ids, both the same on every rank.

        An id that comes twice keeps the mean of those that are ``counted``, ``[rows]`` of ones and zeros. A table of up
        to a gibibyte lives where the first duals came from, and on a GPU nothing here waits for it. A larger one is
        kept once a machine and written by the first process there.
        """
        self.check(ids)
        if self.table is None:
            self.table = self._allocate(duals)
        if self._shared and not first_on_node():
            return
        ids, duals = ids.to(self.table.device), duals.to(self.table)
        if len(ids) == 1:
            self.table.index_copy_(0, ids, duals)
            return
        ordered, order = ids.sort()
        first = torch.searchsorted(ordered, ordered)  # the first of equal ids stands for all of them
        duals = duals[order]
        times = torch.ones_like(duals[:, 0]) if counted is None else counted.to(duals)[order]
        sums = torch.zeros_like(duals).index_add_(0, first, duals.masked_fill(times[:, None] == 0, 0))
        total = torch.zeros_like(times).index_add_(0, first, times)[first, None]
        self.table.index_copy_(0, ordered, torch.where(total > 0, sums[first] / total.clamp(min=1), duals))

    @property
    def _shared(self) -> bool:
        return world_size() > 1 and self.table is not None and self.table.nbytes > NEAR

    def _allocate(self, like: Tensor) -> Tensor:
        """An unset table for duals such as these."""
        shape = self.size, like.shape[1]
        if shape[0] * shape[1] * like.itemsize <= NEAR:
            return like.new_full(shape, torch.nan)
        table = node_shared_memory(shape[0] * shape[1], like.dtype).view(shape)
        if first_on_node():
            table.fill_(torch.nan)
        barrier()  # nobody reads what is not yet unset
        return table

    def check(self, ids: Tensor) -> None:
        """Refuses ids that have no place here; on a GPU the device does so itself, without waiting."""
        if ids.device.type != "cpu" or not ids.numel():
            return
        for number in map(int, ids.aminmax()):
            if not 0 <= number < self.size:
                raise UserError(
                    f"id {number} does not fit a memory of {self.size} duals: give DualMemory the number of rows "
                    f"of the data set (2 n for n pairs), and ids from 0 on"
                )

    def state_dict(self) -> dict:
        return {"size": self.size, "gamma": self.gamma, "table": self.table}

    def load_state_dict(self, state: dict) -> None:
        """Takes over a memory of the same or a smaller size: what is new since then is unset."""
        if state["size"] > self.size:
            raise UserError(
                f"the checkpoint remembers {state['size']} duals, this run {self.size}: "
                f"was it made with another data set?"
            )
        self.gamma, self.table = state["gamma"], None
        if state["table"] is not None:
            self.table = self._allocate(state["table"])
            if not self._shared or first_on_node():
                self.table[: state["size"]] = state["table"]
