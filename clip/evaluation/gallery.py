"""A picture of what was learnt: texts, and the pictures every model finds for them."""

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

from steering.clip.models import one_line

SHOWN = 6  # pictures in a row,
SIDE = 160  # of so many pixels at the most
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}  # what looks like a formula is a caption


def draw(
    queries: Sequence[str],
    partners: Sequence[int],
    picture: Callable[[int], Image.Image],
    scores: Mapping[str, Tensor],
) -> tuple[bytes, list[str]]:
    """Draws one line a query: its partner, then the best pictures of every model, the partner ringed in green.

    Args:
        queries: texts of any characters.
        partners: index of every query's picture in the gallery.
        picture: gives one of the gallery; what it raises costs that picture alone.
        scores: ``[queries, gallery]`` similarities of every model, by name.

    Returns:
        A PNG, and why pictures are missing in it, a line each.
    """
    failures: dict[int, str] = {}

    def show(cell: Any, index: int) -> None:
        try:
            small = picture(index).copy()
            small.thumbnail((SIDE, SIDE))
            cell.imshow(small)
        except Exception as error:  # the gallery is the last thing of a run: what is left of it is worth more
            failures[index] = one_line(error)

    widths = [1.7, 0.9, *(len(scores) * [0.25, *SHOWN * [0.8]])]
    grid = {"width_ratios": widths, "wspace": 0.06, "hspace": 0.12}
    size = (sum(widths) * 0.62, len(queries) * 0.62 + 0.5)
    figure, axes = plt.subplots(len(queries), len(widths), figsize=size, squeeze=False, gridspec_kw=grid)
    for cell in axes.flat:
        cell.axis("off")
    for line, (query, match) in enumerate(zip(queries, partners, strict=True)):
        text = textwrap.fill(one_line(query), 24, max_lines=2, placeholder=" ...")
        axes[line][0].text(1, 0.5, text, ha="right", va="center", fontsize=10, **LITERAL)
        show(axes[line][1], match)
        for number, of_model in enumerate(scores.values()):
            best = of_model[line].topk(min(SHOWN, of_model.shape[1])).indices.tolist()
            for offset, shown in enumerate(best):
                cell = axes[line][2 + number * (SHOWN + 1) + 1 + offset]
                show(cell, shown)
                if shown == match:
                    cell.axis("on")
                    cell.set(xticks=[], yticks=[])
                    plt.setp(list(cell.spines.values()), edgecolor="#009e73", linewidth=2.5)
    axes[0][1].set_title("asked for", fontsize=10)
    for number, name in enumerate(scores):
        axes[0][2 + number * (SHOWN + 1) + 1].set_title(
            one_line(name, 40), fontsize=11, fontweight="bold", loc="left", **LITERAL
        )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return buffer.getvalue(), list(failures.values())


def pick(names: Sequence[str], number: int) -> list[int]:
    """Indices of evenly spread queries, the same for every model: nothing is chosen for looking good."""
    return torch.linspace(0, len(names) - 1, min(number, len(names))).round().long().tolist()
