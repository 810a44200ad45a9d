"""A picture of what was learnt: texts, and the pictures every model finds for them."""

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

SHOWN = 6  # pictures in a row


def draw(
    queries: Sequence[str], partners: Sequence[int], pictures: Sequence[Image.Image], scores: Mapping[str, Tensor]
) -> bytes:
    """Draws one line a query: its partner, then the best pictures of every model, the partner ringed in green.

    Args:
        queries: texts.
        partners: index of every query's picture in the gallery.
        pictures: the gallery.
        scores: ``[queries, gallery]`` similarities of every model, by name.

    Returns:
        A PNG.
    """
    widths = [1.7, 0.9, *(len(scores) * [0.25, *SHOWN * [0.8]])]
    grid = {"width_ratios": widths, "wspace": 0.06, "hspace": 0.12}
    size = (sum(widths) * 0.62, len(queries) * 0.62 + 0.5)
    figure, axes = plt.subplots(len(queries), len(widths), figsize=size, squeeze=False, gridspec_kw=grid)
    for cell in axes.flat:
        cell.axis("off")
    for line, (query, match) in enumerate(zip(queries, partners, strict=True)):
        text = textwrap.fill(query, 24, max_lines=2, placeholder=" ...")
        axes[line][0].text(1, 0.5, text, ha="right", va="center", fontsize=10)
        axes[line][1].imshow(pictures[match])
        for number, of_model in enumerate(scores.values()):
            best = of_model[line].topk(min(SHOWN, len(pictures))).indices.tolist()
            for offset, shown in enumerate(best):
                cell = axes[line][2 + number * (SHOWN + 1) + 1 + offset]
                cell.imshow(pictures[shown])
                if shown == match:
                    cell.axis("on")
                    cell.set(xticks=[], yticks=[])
                    plt.setp(list(cell.spines.values()), edgecolor="#009e73", linewidth=2.5)
    axes[0][1].set_title("asked for", fontsize=10)
    for number, name in enumerate(scores):
        axes[0][2 + number * (SHOWN + 1) + 1].set_title(name, fontsize=11, fontweight="bold", loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def pick(names: Sequence[str], number: int) -> list[int]:
    """Indices of evenly spread queries, the same for every model: nothing is chosen for looking good."""
    return torch.linspace(0, len(names) - 1, min(number, len(names))).round().long().tolist()
