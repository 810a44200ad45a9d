"""Kills a training of several processes again and again, and counts how often every sample was seen.

    python -m benchmarks.faults --kills 60

Writes shards of very different sizes, indexes them, then loses one, cuts one short and spoils some pictures. A run of a
few epochs begins; at random steps all its processes are killed (SIGKILL), and it is resumed with another number of
processes and of loading workers. What counts as seen are the batches of the steps that stayed: a step that was taken
again after a kill counts once, with the last batch. Prints, for every epoch, for how many samples their turn
came 0, 1 and 2 times, and why 0: the sample cannot be used (another stood in for it, which is not its own turn), or it
was left over at the end, where less than a batch remains.
"""

import argparse
import io
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from benchmarks.harness import Goal, Report
from steering import Pairs
from steering.clip import task as clip
from steering.clip.data.images import Undecodable, decode
from steering.clip.data.shards import Shards
from steering.runs import config
from steering.runs.processes import process_group
from steering.runs.run import Run
from steering.settings import Arm, Metric, Recipe
from steering.task import Losses
from steering.training.seeds import derive

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
        take, file = stream.__next__, Path(self.log) / f"{time.monotonic_ns()}-{os.getpid()}.txt"

        class Noted(type(stream)):
            def __next__(self):
                step, found = self.position, take()
                with file.open("a") as out:
                    out.write(f"{step} {time.monotonic_ns()} {' '.join(map(str, found.ids.tolist()))}\n")
                return found

        stream.__class__ = Noted
        return stream


def write_shards(folder: Path, shards: int, chance: random.Random) -> None:
    for number in range(shards):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for sample in range(chance.choice([1, 3, 40, 120, 250, 400])):
                image, picture = np.full((8, 8, 3), (number + sample) % 256, dtype=np.uint8), io.BytesIO()
                Image.fromarray(image).save(picture, "PNG")
                for kind, data in (("png", picture.getvalue()), ("txt", f"pair {number} {sample}".encode())):
                    member = tarfile.TarInfo(f"{sample:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def spoil(folder: Path, chance: random.Random) -> None:
    """Breaks what is indexed already: single pictures, a shard that is cut short, a shard that is gone."""
    shards = sorted(folder.glob("*.tar"), key=lambda path: path.stat().st_size)
    for path in chance.sample(shards, 10):
        data = bytearray(path.read_bytes())
        place = data.find(b"\x89PNG", chance.randrange(len(data) // 2))
        if place >= 0:
            data[place : place + 40] = bytes(40)
            path.write_bytes(bytes(data))
    middle = [path for path in shards if path.stat().st_size > 60_000]
    middle[0].unlink()
    middle[1].write_bytes(middle[1].read_bytes()[:40_000])


def one_process(rank: int, ranks: int, meet: Path, options: dict, folder: Path) -> None:
    """One rank of the run, in a process of its own; never returns."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meet.name}
    code = 1
    try:
        settled, task = config.resolve("benchmarks.faults:Watched", typed={"options": options})
        with process_group(torch.device("cpu")) as device:
            Run(settled, task, folder, Console(quiet=True), ["faults"], device).execute()
        code = 0
    except Exception as error:  # what a rank sees when another one is killed first
        if not isinstance(error, RuntimeError):
            print(f"rank {rank}: {error!r}", file=sys.stderr)
    os._exit(code)


def free_port() -> int:
    import socket

    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def steps_taken(log: Path) -> dict[int, dict[str, tuple[int, list[int]]]]:
    """By step and file (a rank in one life): when, and which ids."""
    found: dict[int, dict[str, tuple[int, list[int]]]] = {}
    for file in log.glob("*.txt"):
        for line in file.read_text().splitlines():
            step, when, *ids = map(int, line.split())
            found.setdefault(step, {})[file.name] = (when, ids)
    return found


def last_batches(log: Path, lives: list[set[str]]) -> list[list[int]]:
    """The ids of every step, in the last life of the run that took it."""
    life = {f"{pid}": number for number, pids in enumerate(lives) for pid in pids}
    batches = []
    for _, files in sorted(steps_taken(log).items()):
        by_life: dict[int, list[int]] = {}
        for name, (_, ids) in files.items():
            by_life.setdefault(life[name.split("-")[1].removesuffix(".txt")], []).extend(ids)
        batches.append(by_life[max(number for number, ids in by_life.items() if len(ids) == BATCH)])
    return batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--shards", type=int, default=37)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--windows", action="store_true", help="the order for data that are too many to permute")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    torch.set_num_threads(1)
    if given.windows:
        clip.MOST_WHOLE = 0
    with tempfile.TemporaryDirectory() as place:
        play(Path(place), given, chance)


def play(place: Path, given: argparse.Namespace, chance: random.Random) -> None:
    for name in ("shards", "val", "log"):
        (place / name).mkdir()
    write_shards(place / "shards", given.shards, chance)
    write_shards(place / "val", 1, chance)
    data = f"{place}/shards/*.tar"
    size = len(Shards.open(data))
    spoil(place / "shards", chance)
    data = f"{place}/shards/{{00000..{given.shards - 1:05d}}}.tar"
    steps = given.epochs * (size // BATCH)
    options = {"data": data, "val": f"{place}/val/*.tar", "log": str(place / "log"), "steps": steps}
    options |= {"bad_share": 0.5, "bad_shards": True, "window": 64, "model": "emoji-rn32", "ref": "none"}
    print(
        f"{size:,} samples in {given.shards} shards, batch {BATCH}, {steps} steps in {given.epochs} epochs", flush=True
    )
    lives, kills, ranks_used = [], 0, Counter()
    while True:
        ranks, workers = chance.choice([2, 4]), chance.choice([0, 1, 2])
        ranks_used[ranks, workers] += 1
        meet = place / str(free_port())
        before = len(steps_taken(place / "log"))
        pids = [fork(rank, ranks, meet, options | {"workers": workers}, place / "run") for rank in range(ranks)]
        lives.append({str(pid) for pid in pids})
        wanted = before + chance.randint(1, 2 * steps // given.kills)
        finished = wait(pids, place / "log", wanted if kills < given.kills else steps + 1)
        if finished:
            break
        kills += 1
    tell(place, size, options, given.epochs, lives, kills, ranks_used)


def fork(rank: int, ranks: int, meet: Path, options: dict, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)  # loading workers are killed with it
        one_process(rank, ranks, meet, options, folder)
    return pid


def wait(pids: list[int], log: Path, wanted: int) -> bool:
    """Kills all once so many steps were taken; True when they ended by themselves first."""
    alive = set(pids)
    while len(steps_taken(log)) < wanted:
        time.sleep(0.02)
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                alive.discard(pid)
                if status:
                    raise SystemExit("a process ended by itself before the run was finished")
        if not alive:
            return True
    for pid in alive:
        os.killpg(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)
    return False


def tell(place: Path, size: int, options: dict, epochs: int, lives: list[set[str]], kills: int, used: Counter) -> None:
    batches = last_batches(place / "log", lives)
    assert len(batches) == epochs * (size // BATCH), f"{len(batches)} steps were taken"
    taken = sum(len(files) for files in steps_taken(place / "log").values())
    ways = ", ".join(f"{n} x {ranks} ranks with {workers} workers" for (ranks, workers), n in sorted(used.items()))
    task = Watched(**options)
    unusable = {number for number in range(size) if not usable(task, number)}
    result = Report("faults-windows" if clip.MOST_WHOLE == 0 else "faults", torch.device("cpu"))
    result.notes = [
        f"{size:,} samples, {len(unusable)} of which cannot be used (spoilt, cut off, or of a shard that is gone).",
        f"{kills} kills; started {ways}.",
        f"{taken:,} batches of a rank were taken for {len(batches):,} steps that count.",
    ]
    rows = [["epoch", "turn came 0 times", "once", "twice", "0: unusable", "0: left over", "0: neither", "stand-ins"]]
    order = task.stream(BATCH, seed=derive(0, "data")).plan.order
    for epoch in range(epochs):
        part = batches[epoch * (size // BATCH) : (epoch + 1) * (size // BATCH)]
        planned = order.ids(epoch, 0, len(part) * BATCH).split(BATCH)
        turns, stand_ins = Counter(), 0
        for ids, wanted in zip(part, planned, strict=True):
            mine = set(ids) & set(wanted.tolist())
            turns.update(mine)
            stand_ins += len(ids) - len(mine)
        never = set(range(size)) - set(turns)
        over = never - set(torch.cat(planned).tolist())
        often = Counter(turns.values())
        cells = (
            len(never),
            often[1],
            often[2],
            len(never & unusable),
            len(over - unusable),
            len(never - over - unusable),
        )
        rows.append([f"{cell:,}" for cell in (epoch + 1, *cells, stand_ins)])
    result.table("Samples", rows)
    print(*result.notes, sep="\n")
    result.goals = [
        Goal("kills", kills, least=50),
        Goal("samples whose turn came twice in an epoch", max(int(row[3]) for row in rows[1:]), most=0),
        Goal("usable samples that were left out without being left over", max(int(row[6]) for row in rows[1:]), most=0),
    ]
    result.save()


def usable(task: Watched, number: int) -> bool:
    shards = task.shards
    try:
        decode(shards.picture(number))
        shards.caption(number)
    except Undecodable:
        return False
    return True


if __name__ == "__main__":
    main()
