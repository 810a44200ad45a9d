"""Several models as one whose similarities are the mean of theirs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from steering.clip.models import Towers
from steering.contrastive.pairs import Pairs


class Views:
    """What several models see of the same samples, side by side in one tensor; what two see alike is made once."""

    def __init__(self, models: Sequence[Towers]):
        transforms = [model.preprocess for model in models]
        shapes = [(3, *model.preprocessing.input_size[1:]) for model in models]
        self.images = _Parts([asdict(model.preprocessing) for model in models], transforms, shapes)
        tokenizers = [model.tokenize for model in models]
        contexts = [tuple(model.tokenize([""]).shape[1:]) for model in models]
        self.tokens = _Parts([model.describe_tokenizer() for model in models], tokenizers, contexts)

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture as all of them take it, ``[sum of 3 * h * w]``."""
        return torch.cat([transform(image).flatten() for transform in self.images.makers])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens of n texts as all of them take them, ``[n, sum of contexts]`` int64."""
        return torch.cat([tokenize(list(texts)) for tokenize in self.tokens.makers], -1)


class _Parts:
    """Where every model's part is, what makes it and of what shape; models with equal ``keys`` share one."""

    def __init__(self, keys: Sequence[Any], makers: Sequence[Callable], shapes: Sequence[tuple[int, ...]]):
        first = [keys.index(key) for key in keys]
        distinct = sorted(set(first))
        self.makers, self.shapes = [makers[i] for i in distinct], [shapes[i] for i in distinct]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.which = [distinct.index(index) for index in first]

    def of(self, packed: Tensor, model: int) -> Tensor:
        """The part of one model, ``[n, total]`` -> ``[n, *shape]``."""
        part = self.which[model]
        return packed.split(self.sizes, -1)[part].reshape(len(packed), *self.shapes[part])


class Ensemble(Towers):
    """Several models as one: features side by side, each times 1 / sqrt(k), so that similarities are averaged.

    Rows keep the length one, and the scale is the mean of theirs. Pictures and tokens are those of ``Views``.
    """

    def __init__(self, models: Sequence[Towers]):
        nn.Module.__init__(self)
        self.models: Any = nn.ModuleList(models)
        self.views = Views(models)
        self.preprocess, self.tokenizer = self.views.preprocess, self.views.tokenize
        self.preprocessing: Any = tuple(model.preprocessing for model in models)
        self.source = " + ".join(model.source for model in models)
        self.arch = " + ".join(model.arch for model in models)

    def encode(self, images: Tensor, tokens: Tensor) -> Pairs:
        scale = torch.stack([model.clip.logit_scale.exp().reshape(()) for model in self.models]).mean()
        return Pairs(self.encode_images(images), self.encode_texts(tokens), scale)

    def encode_images(self, images: Tensor) -> Tensor:
        return side_by_side([m.encode_images(self.views.images.of(images, i)) for i, m in enumerate(self.models)])

    def encode_texts(self, tokens: Tensor) -> Tensor:
        return side_by_side([m.encode_texts(self.views.tokens.of(tokens, i)) for i, m in enumerate(self.models)])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return self.views.tokenize(texts)

    def describe(self) -> dict[str, Any]:
        return {"models": [model.describe() for model in self.models]}

    def describe_tokenizer(self) -> dict[str, Any]:
        return {"models": [model.describe_tokenizer() for model in self.models]}


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """Features of k models ``[n, ..., width]`` in rows whose products are the mean of theirs."""
    return torch.cat([part / len(features) ** 0.5 for part in features], -1)
