"""The target's towers: what open_clip computes, and exports that open_clip and we read back unchanged."""

import json
import logging
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import open_clip
import pytest
import torch
from PIL import Image
from tiny_models import TEXTS, TINY, batch, features, shrink

from steering.clip import models as module
from steering.clip.models import EMOJI, architecture, build
from steering.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


def test_emoji_model_has_the_measured_size():
    towers = build(EMOJI)
    assert sum(p.numel() for p in towers.parameters()) == 1_332_175
    assert towers.preprocessing.size == 32
    assert towers.tokenize(TEXTS).shape == (2, 16)
    assert towers.clip.vocab_size == 4610


@pytest.mark.parametrize("name", [EMOJI, "ViT-B-32"])
def test_features_are_open_clips_and_scale_is_the_inverse_temperature(name):
    towers = build(name, temperature=0.05).eval()
    images, tokens = batch(towers)
    pairs = towers.encode(images, tokens)
    for actual, expected in zip(pairs, features(towers.clip, images, tokens), strict=False):
        torch.testing.assert_close(actual, expected)
    assert float(pairs.scale) == pytest.approx(20)


def test_features_have_length_one_under_autocast():
    towers = build(EMOJI).eval()
    with torch.autocast("cpu", torch.bfloat16):
        pairs = towers.encode(*batch(towers))
    assert pairs.left.dtype == torch.float32
    torch.testing.assert_close(pairs.left.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(pairs.right.norm(dim=1), torch.ones(2))


def test_fixed_temperature_below_a_hundredth_is_kept_and_not_trained():
    towers = build(EMOJI, temperature=0.005)
    assert towers.temperature == pytest.approx(0.005)
    towers.encode(*batch(towers)).per_sample().sum().backward()
    assert towers.clip.logit_scale.grad is None


def test_temperature_is_trained_when_asked():
    towers = build(EMOJI).set_temperature(0.1, learn=True)
    towers.encode(*batch(towers)).per_sample().sum().backward()
    assert float(towers.clip.logit_scale.grad) != 0


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
def test_impossible_temperature_is_refused(temperature):
    with pytest.raises(UserError, match="above 0"):
        build(EMOJI, temperature=temperature)


def test_slash_and_dash_name_one_architecture_with_one_tokenizer():
    assert architecture("ViT-B/16-SigLIP") == "ViT-B-16-SigLIP"
    slash, dash = build("ViT-B/32"), build("ViT-B-32")
    assert slash.describe_tokenizer() == dash.describe_tokenizer()


def test_unknown_architecture_gets_a_suggestion():
    with pytest.raises(UserError, match=r"'ViT-B/23'; did you mean ViT-B-32\? Known: emoji-rn32 and all of"):
        build("ViT-B/23")


def test_missing_package_is_named(monkeypatch):
    text = {**TINY["text_cfg"], "hf_tokenizer_name": "org/tokenizer"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", {**TINY, "text_cfg": text})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers: pip install transformers$"):
        build("ViT-B-32")


def test_tokenizer_of_another_model_is_refused(monkeypatch):
    text = {**TINY["text_cfg"], "vocab_size": 1000}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", {**TINY, "text_cfg": text})
    with pytest.raises(UserError, match="vocabulary of 1000, the tokenizer found for it one of 49408"):
        build("ViT-B-32")


def test_description_tells_weights_preprocessing_and_tokenizers_apart():
    first, second = build("ViT-B-32"), build("ViT-B-32")
    assert first.describe() == first.describe()
    assert first.describe()["weights"] != second.describe()["weights"]
    assert first.describe_tokenizer() != build(EMOJI).describe_tokenizer()
    squashed = module.make("ViT-B-32", source="test", preprocessing={"resize_mode": "squash"})
    assert squashed.preprocessing != first.preprocessing
    json.dumps(first.describe())


@pytest.mark.slow
def test_transform_and_tokenizer_can_go_to_another_process():
    towers = build(EMOJI)
    picture = Image.effect_noise((40, 50), 80).convert("RGB")
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        image, tokens = other.submit(towers.preprocess, picture), other.submit(towers.tokenizer, TEXTS)
        assert torch.equal(image.result(), towers.preprocess(picture))
        assert torch.equal(tokens.result(), towers.tokenize(TEXTS))


def test_making_a_model_says_nothing_and_leaves_logging_as_it_was(capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    build("ViT-B-32")
    assert logging.root.handlers == []
    assert logging.root.manager.disable == logging.NOTSET
    assert "".join(capfd.readouterr()) == ""
