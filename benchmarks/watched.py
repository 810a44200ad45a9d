"""What benchmarks/faults.py kills: the real data path under a toy model, with a log of what every rank was given."""

import ctypes
import io
import os
import random
import resource
import sys
import tarfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from steering import Pairs
from steering.clip import task as clip
from steering.clip.data.images import Undecodable, decode
from steering.errors import RunError, UserError
from steering.runs import config
from steering.runs.processes import process_group
from steering.runs.run import Run
from steering.settings import Arm, Metric, Recipe
from steering.task import Losses

BATCH = 24  # divides by 1, 2, 3 and 4


class Towers(nn.Module):
    """As little as has features of pictures and texts."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(3 * 4 * 4, 8), nn.Embedding(50_000, 8)

    def forward(self, image, text) -> Pairs:
        left = self.image(nn.functional.adaptive_avg_pool2d(image, 4).flatten(1))
        right = self.text(text).mean(1)
        return Pairs(*(nn.functional.normalize(side, dim=-1) for side in (left, right)))


@dataclass(frozen=True)
class Watched(clip.Clip):
    """The real data path under a toy model, writing down what every rank was given in every step."""

    log: str = ""
    steps: int = 10

    @property
    def recipe(self) -> Recipe:
        arm = Arm(rule="kl(temperature=0.5)", subtract=False, gamma=0.5)
        return Recipe(steps=self.steps, batch=BATCH, arms={"only": arm}, baseline="only", checkpoint_every=5)

    @property
    def metrics(self):
        return {"nothing": Metric(label="nothing")}

    def target(self) -> Any:
        return Towers()

    def reference(self) -> Any:
        return Towers()

    def losses(self, model, batch) -> Losses:
        return Losses(model(batch["image"], batch["text"]))

    def evaluate(self, model):
        return {"nothing": 0.0}

    def export(self, model, folder):
        pass

    def exhibits(self, models):
        return []

    def stream(self, batch, *, seed):
        stream = clip.Clip.stream(self, batch, seed=seed)
        take, file = stream.__next__, Path(self.log) / f"{os.environ['LIFE']}-{os.environ['RANK']}.txt"

        class Noted(type(stream)):
            def __next__(self):
                step, batch = self.position, take()
                with file.open("a") as out:
                    out.write(f"{step} {' '.join(map(str, batch.ids.tolist()))}\n")
                return batch

        stream.__class__ = Noted
        return stream


def write_shards(folder: Path, numbers: range, chance: random.Random) -> None:
    for number in numbers:
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for sample in range(chance.choice([1, 3, 40, 120, 250, 400])):
                image, picture = np.full((8, 8, 3), (number + sample) % 256, dtype=np.uint8), io.BytesIO()
                image[:4, :4] = number % 7, number % 251, sample % 251  # so that no two pictures are the same
                Image.fromarray(image).save(picture, "PNG")
                for kind, data in (("png", picture.getvalue()), ("txt", f"pair {number} {sample}".encode())):
                    member = tarfile.TarInfo(f"{sample:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def spoil(folder: Path, chance: random.Random) -> None:
    """Breaks what is indexed already: single pictures, a shard that is cut short, a shard that is gone."""
    shards = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_size)
    for path in chance.sample(shards, max(1, len(shards) // 4)):
        data = bytearray(path.read_bytes())
        offset = data.find(b"\x89PNG", chance.randrange(len(data) // 2))
        if offset >= 0:
            data[offset : offset + 40] = bytes(40)
            path.write_bytes(bytes(data))
    lost, short = shards[len(shards) // 4], shards[len(shards) // 2]
    lost.unlink()
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])


def live(rank: int, options: dict, folder: Path, blow: str) -> None:
    """One rank of a run, in a process of its own that says in one line what went wrong; never returns."""
    code = 1
    try:
        if blow == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
        if blow == "full shared memory":
            fill_shared_memory()
        settings, task = config.resolve("benchmarks.watched:Watched", typed={"options": options})
        with process_group(torch.device("cpu")) as device:
            Run(settings, task, folder, Console(quiet=True), ["faults"], device).execute()
        code = 0
    except (UserError, RunError) as error:
        if rank == 0 or error.local:
            print(f"steer: {error}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def fill_shared_memory() -> None:
    """Gives this process and its children a /dev/shm of their own that holds next to nothing; needs root."""
    libc, new, private = ctypes.CDLL(None, use_errno=True), 0x20000, 0x44000
    failed = libc.unshare(new) or libc.mount(b"none", b"/", None, private, None)
    if failed or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"):
        raise OSError(ctypes.get_errno(), "no /dev/shm of its own")


def can_fill_shared_memory() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            fill_shared_memory()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def steps_taken(log: Path) -> dict[int, dict[int, list[int]]]:
    """The ids of every step, by the life of the run that took it."""
    taken: dict[int, dict[int, list[int]]] = {}
    for file in log.glob("*.txt"):
        for line in file.read_text().splitlines():
            step, *ids = map(int, line.split())
            taken.setdefault(step, {}).setdefault(int(file.name.partition("-")[0]), []).extend(ids)
    return taken


def last_batches(log: Path) -> list[list[int]]:
    """The ids of every step, in the last life in which all ranks took it."""
    taken = [lives for _, lives in sorted(steps_taken(log).items())]
    return [lives[max(life for life, ids in lives.items() if len(ids) == BATCH)] for lives in taken]


def usable(task: Watched, number: int) -> bool:
    shards = task.shards
    try:
        decode(shards.picture(number))
        shards.caption(number)
    except Undecodable:
        return False
    return True
