"""What every test may rely on: fixed seeds, one thread, and property tests that never flicker."""

import random

import hypothesis
import numpy
import pytest
import torch

# The same examples every time; a busy machine is no failure.
STEADY = {"derandomize": True, "deadline": None, "database": None, "max_examples": 25}
hypothesis.settings.register_profile("steady", **STEADY)
hypothesis.settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Bundled shards are written to a folder of this session, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def steady():
    """Seeds every global generator and keeps torch to one thread, so that sums are taken in one order."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
