import random

import numpy as np
import torch

from steering.training import seeds


def draw() -> list[float]:
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]


def test_streams_of_one_seed_are_unlike_each_other():
    assert (
        len({seeds.derive(0, "data"), seeds.derive(0, "model"), seeds.derive(1, "data"), seeds.derive(0, "data", 1)})
        == 4
    )


def test_the_same_seed_draws_the_same_numbers():
    seeds.seed_everything(4)
    first = draw()
    seeds.seed_everything(4)
    assert draw() == first


def test_nothing_drawn_inside_untouched_is_seen_outside():
    seeds.seed_everything(4)
    first = draw()
    seeds.seed_everything(4)
    with seeds.untouched():
        draw()
        torch.manual_seed(99)
    assert draw() == first
