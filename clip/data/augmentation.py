"""What a model sees of a picture: random views for training, plain ones for evaluation and references."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from steering.clip.data.images import flatten
from steering.training.seeds import seed_everything, untouched

ZOOM = (0.8, 1.1)  # a picture's size relative to its frame
SHIFT = 0.1  # of the frame's side, at most, each way
TURN = math.radians(12)  # at most, each way
WHITE = 0.5  # share of views on white paper, which evaluation shows; the others are on a random colour
CONTRAST = (0.75, 1.25)
BRIGHTNESS = 0.12  # added to all channels, at most, of 1
MIX = 0.05  # standard deviation of what one channel takes of another
CROP = (0.9, 1.0)  # share of an ordinary picture's area that a view shows

Transform = Callable[[Image.Image], Tensor]


def small_views(
    images: Tensor,
    generator: torch.Generator,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    among: tuple[int, int] | None = None,
) -> Tensor:
    """Random views of small pictures, all at once: zoom, shift, turn, paper, contrast, brightness, colours.

    A model for 32-pixel pictures is so fast that one picture at a time through Pillow would hold it up.

    Args:
        images: ``[n, 3 or 4, h, w]`` uint8, colours not multiplied by alpha; other shapes than a square are
            squashed.
        generator: all randomness comes from it.
        size: side of the views, in pixels.
        mean, std: of the three channels, 0 to 1.
        among: index of the first picture in a larger batch and the size of that, whose views these are a part of.

    Returns:
        ``[n, 3, size, size]`` float32, normalised. Transparent parts and what lies outside of a picture show
        the paper: white or one random colour a view.
    """
    n = len(images)
    first, total = among or (0, n)
    draw = torch.rand(total, 10, generator=generator)[first : first + n] * 2 - 1  # within -1 and 1
    mix = torch.randn(total, 3, 3, generator=generator)[first : first + n] * MIX

    pixels = images.float() / 255
    alpha = pixels[:, 3:] if images.shape[1] == 4 else torch.ones_like(pixels[:, :1])
    pixels = torch.cat([pixels[:, :3] * alpha, alpha], 1)  # so that no hidden colour bleeds over an edge
    if max(pixels.shape[2:]) > size:
        pixels = interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    grid = affine_grid(_frames(draw[:, :4]), [n, 4, size, size], align_corners=False)
    pixels = grid_sample(pixels, grid, align_corners=False).flatten(2)

    paper = (draw[:, 4:7, None] + 1) / 2
    paper = torch.where(draw[:, 7, None, None] < 2 * WHITE - 1, torch.ones_like(paper), paper)
    seen = pixels[:, :3] + paper * (1 - pixels[:, 3:])

    contrast = _between(draw[:, 8], CONTRAST)[:, None, None]
    blend = contrast * (torch.eye(3) + mix - mix.mean(-1, keepdim=True))  # grey stays grey
    offset = (1 - contrast) / 2 + draw[:, 9, None, None] * BRIGHTNESS
    seen = torch.baddbmm(offset.expand(n, 3, 1), blend, seen).clamp_(0, 1)
    centre, spread = torch.tensor([mean, std])[:, :, None]
    return ((seen - centre) / spread).unflatten(-1, (size, size))


def canvas(image: Image.Image, preprocessing: PreprocessCfg) -> Tensor:
    """A picture at a model's size, for ``small_views``: ``[4, h, w]`` uint8, clear where it does not reach."""
    height, width = preprocessing.input_size[1:]
    image = image.convert("RGBA")
    if image.size != (width, height):
        method = Image.Resampling.BILINEAR if preprocessing.interpolation == "bilinear" else Image.Resampling.BICUBIC
        resize = {"shortest": ImageOps.fit, "longest": ImageOps.pad, "squash": Image.Image.resize}
        image = resize[preprocessing.resize_mode](image, (width, height), method)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def picture_transform(preprocessing: PreprocessCfg) -> Transform:
    """open_clip's own training view of a picture: a random crop of nearly all of it."""
    transform: Any = image_transform_v2(preprocessing, is_train=True, aug_cfg=AugmentationCfg(scale=CROP))
    return transform


def picture_views(
    images: Sequence[Image.Image],
    transform: Transform,
    generator: torch.Generator,
    among: tuple[int, int] | None = None,
) -> Tensor:
    """Random views of ordinary pictures, one at a time.

    Args:
        images: n pictures of any size.
        transform: ``picture_transform`` of a model's preprocessing. It draws from the global generators, so
            these are seeded from ``generator`` and left as they were.
        generator: decides the views.
        among: index of the first picture in a larger batch and the size of that, whose views these are a part of.

    Returns:
        ``[n, 3, size, size]`` float32, normalised; transparent parts are white.
    """
    first, total = among or (0, len(images))
    chances = torch.randint(2**62, (total,), generator=generator)[first : first + len(images)].tolist()
    views = []
    with untouched():
        for image, chance in zip(images, chances, strict=True):
            seed_everything(chance)
            views.append(transform(flatten(image)))
    return torch.stack(views)


def plain_views(images: Sequence[Image.Image], preprocess: Transform) -> Tensor:
    """The pictures as a model sees them in evaluation, ``[n, 3, size, size]``; transparent parts are white."""
    return torch.stack([preprocess(flatten(image)) for image in images])


def _frames(draw: Tensor) -> Tensor:
    """Where views look, ``[n, 4]`` draws to ``[n, 2, 3]`` maps from positions in a view to positions in the picture."""
    zoom, turn = _between(draw[:, 0], ZOOM), draw[:, 1] * TURN
    shift = draw[:, 2:4] * 2 * SHIFT  # a side is 2 long
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    maps = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return torch.cat([maps, -(maps @ shift[:, :, None])], -1)


def _between(draw: Tensor, ends: tuple[float, float]) -> Tensor:
    low, high = ends
    return low + (draw + 1) / 2 * (high - low)
