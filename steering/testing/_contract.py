"""What the three contracts share."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Contract:
    """Something that has promises to keep: every method whose name begins with ``check_`` is about one of them."""

    def check(self) -> None:
        for name, method in vars(type(self)).items():
            if name.startswith("check_"):
                method(self)

    def require(self, condition: object, promise: str, got: object = "") -> None:
        """Asserts that a promise is kept."""
        assert condition, f"{self}: {promise}" + (f", got {got}" if str(got) else "")

    def quietly(self, name: str, action: Callable[[], Any]) -> Any:
        """Calls something that must leave the global generators as they are."""
        before = states()
        result = action()
        changed = [generator for generator, state in states().items() if state != before[generator]]
        self.require(not changed, f"{name} leaves the global generators alone", f"another state of {changed}")
        return result


def states() -> dict[str, object]:
    """States of the global generators of torch, NumPy and Python, to be compared."""
    legacy: Any = np.random.get_state(legacy=True)
    numpy = (legacy[0], legacy[1].tobytes(), *legacy[2:])
    return {"torch": bytes(torch.get_rng_state().numpy()), "numpy": numpy, "python": random.getstate()}


def disturb() -> None:
    """Draws from all of them, so that whoever depends on one gives something else next time."""
    torch.rand(1)
    np.random.rand()
    random.random()
