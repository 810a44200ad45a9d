"""Zero-shot classification: pictures with a class each, told by the class whose prompts are closest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from steering.clip.data.images import Skips, decode, flatten
from steering.clip.evaluation.embedding import ALONE, PictureSet, Work, embed_classes
from steering.clip.evaluation.labelled_images import Classes, read_classes
from steering.clip.evaluation.retrieval import Share, mean_of_classes, places, share
from steering.clip.models import Towers
from steering.settings import Metric

TOP = 5


@dataclass(frozen=True)
class ClassPictures:
    """The pictures of a set, on white."""

    classes: Classes

    def __len__(self) -> int:
        return len(self.classes)

    def load(self, place: int) -> Image.Image:
        return flatten(decode(self.classes.picture(place)))

    def name(self, place: int) -> str:
        return self.classes.name(place)


class ZeroShotSuite:
    """Accuracy of choosing each picture's class by name: top 1, top 5 where there are more, mean recall of a class.

    The text side is one row a class, the mean of its prompts' features; the picture's class is the one whose row is
    most similar. All classes compete, also those without pictures, which count for nothing else.

    Args:
        source: as ``classes.read_classes`` takes it.
        bad_share: largest share of pictures that may be unreadable.
    """

    def __init__(self, source: str, bad_share: float = 0.01):
        self.classes = read_classes(source)
        self.skips = Skips()
        self.pictures = PictureSet(ClassPictures(self.classes), self.skips, bad_share)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        count = len(self.classes.names)
        words = {"top1": ("top-1", 1), "top5": (f"top-{TOP}", TOP), "class_recall": ("mean class recall", 1)}
        return {
            name: Metric(label=f"zero-shot {label}", chance=k / count, percent=True)
            for name, (label, k) in words.items()
            if k < count
        }

    def measure(self, towers: Towers, work: Work = ALONE) -> dict[str, Share]:
        images = self.pictures.embed(towers, work)
        rows = embed_classes(towers, self.classes.prompts, work)
        labels = torch.tensor(self.classes.labels, device=images.device)[self.pictures.usable]
        found = places(images, rows, torch.arange(len(rows), device=rows.device), own=labels, work=work)
        first = found.hits(1)
        shares = {"top1": share(first), "class_recall": mean_of_classes(first, labels)}
        if "top5" in self.metrics:
            shares["top5"] = share(found.hits(TOP))
        return {name: shares[name] for name in self.metrics}
