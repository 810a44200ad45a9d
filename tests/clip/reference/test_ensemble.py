"""Several models as one: the mean of similarities, whatever each model sees."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import open_clip
import pytest
import torch
from PIL import Image

from steering.clip.models import Towers, build
from steering.clip.reference.ensemble import Ensemble, Views

WIDE = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a cat", "red, not blue", "nothing at all"]


@pytest.fixture
def wide(monkeypatch) -> Towers:
    """Another width, resolution and tokenizer than the small model's."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "wide-test", WIDE)
    return build("wide-test", temperature=0.02).eval()


@pytest.fixture
def small() -> Towers:
    return build("emoji-rn32", temperature=0.1).eval()


def pictures():
    return [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]


@torch.no_grad()
def alone(model: Towers):
    images = torch.stack([model.preprocess(image) for image in pictures()])
    return model.encode(images, model.tokenize(TEXTS))


@torch.no_grad()
def test_similarities_are_the_mean_of_the_members(small, wide):
    both = Ensemble([small, wide])
    results, parts = alone(both), [alone(model) for model in (small, wide)]
    assert results.left.shape == results.right.shape == (3, 96 + 48)
    mean = sum(part.left @ part.right.T for part in parts) / 2
    torch.testing.assert_close(results.left @ results.right.T, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(results.left.norm(dim=-1), torch.ones(3))
    assert float(results.scale) == pytest.approx((1 / 0.1 + 1 / 0.02) / 2)


def test_every_member_sees_its_own_resolution_and_tokens(small, wide):
    views = Views([wide, small])
    packed = torch.stack([views.preprocess(image) for image in pictures()])
    assert packed.shape == (3, 3 * (48 * 48 + 32 * 32))
    tokens = views.tokenize(TEXTS)
    for index, model in enumerate((wide, small)):
        images = torch.stack([model.preprocess(image) for image in pictures()])
        assert torch.equal(views.images.of(packed, index), images)
        assert torch.equal(views.tokens.of(tokens, index), model.tokenize(TEXTS))


def test_what_two_members_see_alike_is_made_once(small, wide):
    views = Views([small, wide, build("emoji-rn32")])
    assert views.preprocess(pictures()[0]).shape == (3 * (48 * 48 + 32 * 32),)
    assert views.tokenize(TEXTS).shape == (3, 16 + 20)
    assert torch.equal(views.tokens.of(views.tokenize(TEXTS), 2), small.tokenize(TEXTS))


@pytest.mark.slow
def test_another_process_can_make_its_views(small, wide):
    views = Views([small, wide])
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        results = other.submit(views.preprocess, pictures()[0]).result()
    assert torch.equal(results, views.preprocess(pictures()[0]))


def test_members_move_and_are_evaluated_as_one(small, wide):
    both = Ensemble([small, wide]).double()
    assert {p.dtype for p in both.parameters()} == {torch.float64}
    assert both.describe()["models"][0]["arch"] == "emoji-rn32"
