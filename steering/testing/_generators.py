"""Whether something drew from the global generators."""

import random
from typing import Any

import numpy as np
import torch


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
