"""Views: random ones that depend on their generator alone, and plain ones as open_clip makes them."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from steering.clip.data import augmentation
from steering.clip.data.augmentation import canvas, picture_transform, picture_views, plain_views, small_views

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def generators():
    """States of all global ones."""
    return str((torch.get_rng_state().tolist(), np.random.get_state(legacy=False), random.getstate()))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(images, size=32, seed=0):
    """Views in colours from 0 to 1."""
    seen = small_views(images, seeded(seed), size, MEAN, STD)
    return seen * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def noise(n=6, channels=4, side=32):
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=seeded(1))


def pictures():
    rows = np.random.default_rng(0).integers(0, 256, (4, 50, 60, 3), dtype=np.uint8)
    return [Image.fromarray(row) for row in rows]


def steady(monkeypatch, **settings):
    """Leaves out every randomness that is not named."""
    still = {"ZOOM": (1, 1), "SHIFT": 0, "TURN": 0, "WHITE": 1, "CONTRAST": (1, 1), "BRIGHTNESS": 0, "MIX": 0}
    for name, value in (still | settings).items():
        monkeypatch.setattr(augmentation, name, value)


def test_small_views_depend_on_their_generator_alone():
    first = small_views(noise(), seeded(3), 32, MEAN, STD)
    torch.rand(7)
    assert torch.equal(first, small_views(noise(), seeded(3), 32, MEAN, STD))
    assert not torch.equal(first, small_views(noise(), seeded(4), 32, MEAN, STD))
    assert first.shape == (6, 3, 32, 32) and first.dtype == torch.float32


@pytest.mark.parametrize("make", ["small", "pictures"])
def test_no_view_touches_the_global_generators(make):
    before = generators()
    if make == "small":
        small(noise())
    else:
        picture_views(pictures(), picture_transform(PreprocessCfg(size=24)), seeded())
    assert generators() == before


def test_without_randomness_a_small_view_is_the_picture(monkeypatch):
    steady(monkeypatch)
    images = noise(channels=3)
    assert torch.allclose(small(images), images / 255, atol=1e-5)


def test_transparent_parts_show_white_paper_in_half_of_the_views(monkeypatch):
    steady(monkeypatch, WHITE=0.5)
    seen = small(torch.zeros(400, 4, 4, 4, dtype=torch.uint8), size=4)
    white = (seen > 0.999).flatten(1).all(1)
    assert 160 < white.sum() < 240
    others = seen[~white]
    assert torch.allclose(others, others[:, :, :1, :1], atol=1e-6), "paper has one colour"
    assert others[:, :, 0, 0].std(0).min() > 0.2, "which differs from view to view"


def test_colours_that_hide_under_transparency_never_show():
    clear = torch.zeros(64, 4, 16, 16, dtype=torch.uint8)
    clear[:, 3, 4:12, 4:12] = 255
    clear[:, 2, 4:12, 4:12] = 200  # a blue square; around it hides nothing, or red
    red = clear.clone()
    red[:, 0][red[:, 3] == 0] = 255
    assert torch.equal(small(clear, size=16), small(red, size=16))


def test_a_shifted_picture_moves_over_the_paper_by_at_most_the_shift(monkeypatch):
    """Up to a tenth of 20 pixels, 2, each way: a square of 4 pixels in the middle stays in the middle 8."""
    steady(monkeypatch, SHIFT=0.1)
    images = torch.full((200, 3, 20, 20), 255, dtype=torch.uint8)
    images[:, :, 8:12, 8:12] = 0
    dark = small(images, size=20)[:, 0] < 0.999
    indices = dark.nonzero()[:, 1:]
    assert indices.min() == 6 and indices.max() == 13
    assert torch.allclose((1 - small(images, size=20)[:, 0]).sum((1, 2)), torch.tensor(16.0), atol=1e-3)


def test_zoom_and_turn_keep_the_middle_and_the_proportions(monkeypatch):
    """A square of 10 pixels, zoomed by 1.2: 144 pixels, whatever its turn."""
    steady(monkeypatch, ZOOM=(1.2, 1.2), TURN=0.3)
    images = torch.full((50, 3, 40, 40), 255, dtype=torch.uint8)
    images[:, :, 15:25, 15:25] = 0
    dark = 1 - small(images, size=40)[:, 0]
    assert torch.allclose(dark.sum((1, 2)), torch.tensor(144.0), rtol=0.02)
    middle = torch.arange(40) - 19.5
    assert (dark.sum(1) @ middle).abs().max() < 0.5 and (dark.sum(2) @ middle).abs().max() < 0.5
    assert dark.std(0).max() > 0.1, "they turn differently"


def test_grey_stays_grey_under_all_changes_of_colour(monkeypatch):
    monkeypatch.setattr(augmentation, "WHITE", 1)
    seen = small(torch.full((50, 3, 8, 8), 128, dtype=torch.uint8), size=8)
    assert torch.allclose(seen, seen.mean(1, keepdim=True).expand_as(seen), atol=1e-5)
    assert seen.flatten(1).mean(1).std() > 0.02 and seen.min() >= 0 and seen.max() <= 1


def test_larger_pictures_are_averaged_down_not_sampled(monkeypatch):
    """Single white lines on black, every fourth: a quarter of white, which picking pixels would miss or hit."""
    steady(monkeypatch)
    lines = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    lines[..., ::4] = 255
    inner = small(lines, size=16)[..., 2:-2, 2:-2]
    assert torch.allclose(inner, torch.tensor(0.25), atol=0.06)


def test_a_canvas_follows_the_resize_mode():
    """A picture twice as wide as high, left red and right blue."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    cut = {mode: canvas(image, PreprocessCfg(size=10, resize_mode=mode)) for mode in ("shortest", "longest", "squash")}
    assert all(pixels.shape == (4, 10, 10) and pixels.dtype == torch.uint8 for pixels in cut.values())
    assert cut["longest"][3, :, 5].tolist() == [0] * 2 + [255] * 5 + [0] * 3
    assert cut["shortest"][3].min() == cut["squash"][3].min() == 255
    assert cut["squash"][:3, 5, 0].tolist() == [255, 0, 0]
    same = Image.new("RGBA", (10, 10), (1, 2, 3, 4))
    assert canvas(same, PreprocessCfg(size=10))[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_picture_views_are_open_clips_own_and_depend_on_the_generator_alone():
    cfg = PreprocessCfg(size=24)
    first = picture_views(pictures(), picture_transform(cfg), seeded(3))
    torch.rand(7)
    random.random()
    assert torch.equal(first, picture_views(pictures(), picture_transform(cfg), seeded(3)))
    assert not torch.equal(first, picture_views(pictures(), picture_transform(cfg), seeded(4)))
    assert first.shape == (4, 3, 24, 24)


def test_plain_views_are_what_open_clip_evaluates_with_white_where_it_is_clear():
    cfg = PreprocessCfg(size=24)
    preprocess: Any = image_transform_v2(cfg, is_train=False)
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    seen = plain_views([*pictures(), clear], preprocess)
    assert torch.equal(seen[0], preprocess(pictures()[0]))
    assert torch.equal(seen[4], preprocess(Image.new("RGB", (30, 30), "white")))
