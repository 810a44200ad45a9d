"""Zero-shot classification: pictures with a class each, told by the class whose prompts are closest."""

from collections.abc import Mapping

import torch

from steering.clip.data.skipped_samples import Skips
from steering.clip.evaluation.embedding import ALONE, PictureSet, Work, embed_classes
from steering.clip.evaluation.labelled_images import read_classes
from steering.clip.evaluation.retrieval import Share, mean_of_classes, rank_own, share
from steering.clip.models import Towers
from steering.settings import Metric

TOP = 5


class ZeroShotSuite:
    """Accuracy of choosing each picture's class by name: top 1, top 5 where there are more, mean recall of a class.

    The text side is one row a class, the mean of its prompts' features; the picture's class is the one whose row is
    most similar. All classes compete, also those without pictures, which count for nothing else.

    Args:
        source: as ``labelled_images.read_classes`` takes it.
        bad_share: largest share of pictures that may be unreadable.
    """

    def __init__(self, source: str, bad_share: float = 0.01):
        self.classes = read_classes(source)
        self.skips = Skips()
        self.pictures = PictureSet(self.classes.pictures, self.skips, bad_share)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        count = len(self.classes.names)
        labels = {"top1": ("top-1", 1), "top5": (f"top-{TOP}", TOP), "class_recall": ("mean class recall", 1)}
        return {
            name: Metric(label=f"zero-shot {label}", chance=k / count, percent=True)
            for name, (label, k) in labels.items()
            if k < count
        }

    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]:
        images = self.pictures.embed(towers, work)
        rows = embed_classes(towers, self.classes.prompts, work)
        labels = torch.tensor(self.classes.pictures.labels, device=images.device)[self.pictures.usable]
        ranks = rank_own(images, rows, torch.arange(len(rows), device=rows.device), labels, work)
        first = ranks.hits(1)
        shares = {"top1": share(first), "class_recall": mean_of_classes(first, labels), "top5": share(ranks.hits(TOP))}
        return {name: shares[name] for name in self.metrics}
