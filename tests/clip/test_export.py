"""Exports: what open_clip and we read back unchanged, whole or not there."""

import json
from pathlib import Path
from typing import Any, cast

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from tiny_models import TEXTS, batch, features, shrink

from steering.clip.models import CONFIG, EMOJI, MERGES, WEIGHTS, build, export, make
from steering.clip.reference.load import read
from steering.errors import RunError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


def test_export_is_what_open_clip_reads(tmp_path):
    """Own configuration, QuickGELU and preprocessing all arrive; only local-dir carries the three."""
    preprocessing = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "resize_mode": "squash"}
    towers = make("ViT-B-32", source="test", quick_gelu=True, preprocessing=preprocessing).eval()
    folder = export(towers, tmp_path / "export")

    model, _, transform = open_clip.create_model_and_transforms(
        model_name=f"local-dir:{folder}", require_pretrained=True
    )
    images, tokens = batch(towers)
    for actual, expected in zip(towers.encode(images, tokens), features(model, images, tokens), strict=False):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert any(isinstance(m, QuickGELU) for m in model.modules())
    picture = Image.effect_noise((40, 50), 80).convert("RGB")
    complete: Any = transform
    assert torch.equal(towers.preprocess(picture), complete(picture))
    expected = open_clip.get_tokenizer(model_name=f"local-dir:{folder}")(TEXTS)
    assert torch.equal(tokens, expected)


def test_the_weights_of_an_export_are_a_checkpoint_of_their_architecture(tmp_path):
    """As other software names it, an architecture and a file; right where preprocessing and activation are usual."""
    towers = build("ViT-B-32", temperature=0.01).eval()
    file = export(towers, tmp_path / "export") / WEIGHTS
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(file))
    images, tokens = batch(towers)
    for actual, expected in zip(towers.encode(images, tokens), features(model.eval(), images, tokens), strict=False):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert float(model.state_dict()["logit_scale"].exp()) == pytest.approx(100)
    picture, usual = Image.effect_noise((40, 50), 80).convert("RGB"), cast("Any", transform)
    assert torch.equal(towers.preprocess(picture), usual(picture))


def test_emoji_export_is_what_open_clip_reads_and_keeps_its_tokenizer(tmp_path):
    towers = build(EMOJI).eval()
    folder = export(towers, tmp_path / "export")
    images, tokens = batch(towers)
    model = open_clip.create_model(model_name=f"local-dir:{folder}", require_pretrained=True)
    again = read(folder).eval()
    for other in (features(model, images, tokens), again.encode(images, again.tokenize(TEXTS))):
        for actual, expected in zip(towers.encode(images, tokens), other, strict=False):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert again.describe() == {**towers.describe(), "source": str(folder)}


def test_second_generation_export_has_the_same_weights_and_tokenizer(tmp_path):
    first = export(build(EMOJI), tmp_path / "first")
    second = export(read(first), tmp_path / "second")
    for name in (WEIGHTS, MERGES):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_half_export_takes_half_the_space_and_open_clip_reads_it(tmp_path):
    towers = build(EMOJI).eval()
    complete, half = export(towers, tmp_path / "whole"), export(towers, tmp_path / "half", half=True)
    assert (half / WEIGHTS).stat().st_size < 0.52 * (complete / WEIGHTS).stat().st_size
    model = open_clip.create_model(model_name=f"local-dir:{half}", require_pretrained=True)
    assert next(model.parameters()).dtype == torch.float32
    images, tokens = batch(towers)
    for actual, expected in zip(towers.encode(images, tokens), features(model, images, tokens), strict=False):
        torch.testing.assert_close(actual, expected, rtol=0, atol=2e-3)


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
    rename = Path.rename

    def full(path, *rest, **options):
        if broken == "Path.rename" and not str(path).endswith(".new"):
            return rename(path, *rest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"steering.clip.models.{broken}", full)
    with pytest.raises(RunError, match=r"cannot write .*export: No space left on device\. Free some space"):
        export(build(EMOJI), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_holds_no_pickle_and_names_no_other_folder(tmp_path):
    folder = export(build(EMOJI), tmp_path / "export")
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, WEIGHTS, MERGES])
    content = json.loads((folder / CONFIG).read_text())
    assert content["steer"] == {
        "arch": EMOJI,
        "source": "emoji-rn32 with random weights",
        "merges": MERGES,
    }
