"""open_clip's own names with models that are made in no time."""

import open_clip
import pytest
import torch
from torch import Tensor

from steering.clip.models import Towers

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a red square", "two green circles on a long, long road"]


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ViT-B-32 the name of a tiny model."""
    for name, config in {"ViT-B-32": TINY, "ViT-B-32-quickgelu": {**TINY, "quick_gelu": True}}.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def batch(towers: Towers) -> tuple[Tensor, Tensor]:
    """Two pictures of noise with the tokens of two texts."""
    return torch.randn(2, 3, 32, 32), towers.tokenize(TEXTS)


def features(model, images: Tensor, tokens: Tensor) -> list[Tensor]:
    """open_clip's own features, of length one."""
    with torch.no_grad():
        return model.eval()(images, tokens)[:2]
