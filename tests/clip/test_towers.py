"""The target's towers: what open_clip computes, and exports that open_clip and we read back unchanged."""

import json
import logging
import math
import pickle
import sys
from typing import Any, cast

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image

from steering.clip import towers as module
from steering.clip.reference.load import read
from steering.clip.towers import CONFIG, EMOJI, WEIGHTS, architecture, build, export
from steering.errors import RunError, UserError

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a red square", "two green circles on a long, long road"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """open_clip's own names, with models that are made in no time."""
    configs = {"ViT-B-32": TINY, "ViT-B-32-quickgelu": {**TINY, "quick_gelu": True}}
    for name, config in configs.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def batch(towers):
    """Two pictures of noise with the tokens of two texts."""
    return torch.randn(2, 3, 32, 32), towers.tokenize(TEXTS)


def features(model, images, tokens):
    """open_clip's own features, of length one."""
    with torch.no_grad():
        return model.eval()(images, tokens)[:2]


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
    pairs = towers(images, tokens)
    for ours, theirs in zip(pairs, features(towers.clip, images, tokens), strict=False):
        torch.testing.assert_close(ours, theirs)
    assert float(pairs.scale) == pytest.approx(20)


def test_features_have_length_one_under_autocast():
    towers = build(EMOJI).eval()
    with torch.autocast("cpu", torch.bfloat16):
        pairs = towers(*batch(towers))
    assert pairs.left.dtype == torch.float32
    torch.testing.assert_close(pairs.left.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(pairs.right.norm(dim=1), torch.ones(2))


def test_fixed_temperature_below_a_hundredth_is_kept_and_not_trained():
    towers = build(EMOJI, temperature=0.005)
    assert towers.temperature == pytest.approx(0.005)
    towers(*batch(towers)).per_sample().sum().backward()
    assert towers.clip.logit_scale.grad is None


def test_temperature_is_trained_when_asked():
    towers = build(EMOJI).set_temperature(0.1, learn=True)
    towers(*batch(towers)).per_sample().sum().backward()
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


def test_export_is_what_open_clip_reads(tmp_path):
    """Own configuration, QuickGELU and preprocessing all arrive; only local-dir carries the three."""
    preprocessing = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "resize_mode": "squash"}
    towers = module.make("ViT-B-32", source="test", quick_gelu=True, preprocessing=preprocessing).eval()
    folder = export(towers, tmp_path / "export")

    model, _, transform = open_clip.create_model_and_transforms(
        model_name=f"local-dir:{folder}", require_pretrained=True
    )
    images, tokens = batch(towers)
    for ours, theirs in zip(towers(images, tokens), features(model, images, tokens), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert any(isinstance(m, QuickGELU) for m in model.modules())
    picture = Image.effect_noise((40, 50), 80).convert("RGB")
    whole: Any = transform
    assert torch.equal(towers.preprocess(picture), whole(picture))
    theirs = open_clip.get_tokenizer(model_name=f"local-dir:{folder}")(TEXTS)
    assert torch.equal(tokens, theirs)


def test_the_weights_of_an_export_are_a_checkpoint_of_their_architecture(tmp_path):
    """As other software names it, an architecture and a file; right where preprocessing and activation are usual."""
    towers = build("ViT-B-32", temperature=0.01).eval()
    file = export(towers, tmp_path / "export") / WEIGHTS
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(file))
    images, tokens = batch(towers)
    for ours, theirs in zip(towers(images, tokens), features(model.eval(), images, tokens), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert float(model.state_dict()["logit_scale"].exp()) == pytest.approx(100)
    picture, usual = Image.effect_noise((40, 50), 80).convert("RGB"), cast("Any", transform)
    assert torch.equal(towers.preprocess(picture), usual(picture))


def test_emoji_export_is_what_open_clip_reads_and_keeps_its_tokenizer(tmp_path):
    towers = build(EMOJI).eval()
    folder = export(towers, tmp_path / "export")
    images, tokens = batch(towers)
    model = open_clip.create_model(model_name=f"local-dir:{folder}", require_pretrained=True)
    again = read(folder).eval()
    for other in (features(model, images, tokens), again(images, again.tokenize(TEXTS))):
        for ours, theirs in zip(towers(images, tokens), other, strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert again.describe() == {**towers.describe(), "source": str(folder)}


def test_second_generation_export_has_the_same_weights_and_tokenizer(tmp_path):
    first = export(build(EMOJI), tmp_path / "first")
    second = export(read(first), tmp_path / "second")
    for name in (WEIGHTS, module.MERGES):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_half_export_takes_half_the_space_and_open_clip_reads_it(tmp_path):
    towers = build(EMOJI).eval()
    whole, half = export(towers, tmp_path / "whole"), export(towers, tmp_path / "half", half=True)
    assert (half / WEIGHTS).stat().st_size < 0.52 * (whole / WEIGHTS).stat().st_size
    model = open_clip.create_model(model_name=f"local-dir:{half}", require_pretrained=True)
    assert next(model.parameters()).dtype == torch.float32
    images, tokens = batch(towers)
    for ours, theirs in zip(towers(images, tokens), features(model, images, tokens), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_half_export_keeps_what_float16_cannot_hold(tmp_path):
    towers = build(EMOJI)
    towers.clip.visual.bn1.running_var.fill_(1e6)
    towers.clip.text_projection.data[0, 0] = 1e6
    again = read(export(towers, tmp_path / "half", half=True))
    assert float(again.clip.visual.bn1.running_var[0]) == 1e6
    assert again.clip.text_projection[0, 0].item() == 1e6


def test_export_replaces_an_older_one_and_leaves_nothing_else(tmp_path):
    export(build(EMOJI), tmp_path / "export")
    towers = build(EMOJI)
    export(towers, tmp_path / "export")
    assert read(tmp_path / "export").describe()["weights"] == towers.describe()["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("broken", ["save_file", "Path.rename"])
def test_failed_export_leaves_the_older_one(tmp_path, monkeypatch, broken):
    """A disk that fills up, and a folder that cannot be renamed once the old one is out of the way."""
    folder = export(build(EMOJI), tmp_path / "export")
    before = (folder / WEIGHTS).read_bytes()
    rename = module.Path.rename

    def full(path, *rest, **options):
        if broken == "Path.rename" and not str(path).endswith(".new"):
            return rename(path, *rest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"steering.clip.towers.{broken}", full)
    with pytest.raises(RunError, match=r"cannot write .*export: No space left on device\. Free some space"):
        export(build(EMOJI), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_holds_no_pickle_and_names_no_other_folder(tmp_path):
    folder = export(build(EMOJI), tmp_path / "export")
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, WEIGHTS, module.MERGES])
    content = json.loads((folder / CONFIG).read_text())
    assert content["steer"] == {
        "arch": EMOJI,
        "source": "emoji-rn32 with random weights",
        "merges": module.MERGES,
    }


def test_description_tells_weights_preprocessing_and_tokenizers_apart():
    first, second = build("ViT-B-32"), build("ViT-B-32")
    assert first.describe() == first.describe()
    assert first.describe()["weights"] != second.describe()["weights"]
    assert first.describe_tokenizer() != build(EMOJI).describe_tokenizer()
    squashed = module.make("ViT-B-32", source="test", preprocessing={"resize_mode": "squash"})
    assert squashed.preprocessing != first.preprocessing
    json.dumps(first.describe())


def test_transform_and_tokenizer_can_go_to_another_process():
    towers = build(EMOJI)
    transform, tokenizer = pickle.loads(pickle.dumps((towers.val_transform(), towers.tokenizer)))
    picture = Image.effect_noise((40, 50), 80).convert("RGB")
    assert torch.equal(transform(picture), towers.preprocess(picture))
    assert torch.equal(tokenizer(TEXTS), towers.tokenize(TEXTS))


def test_making_a_model_says_nothing_and_leaves_logging_as_it_was(capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    build("ViT-B-32")
    assert logging.root.handlers == []
    assert logging.root.manager.disable == logging.NOTSET
    assert "".join(capfd.readouterr()) == ""
