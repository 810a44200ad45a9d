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
import socket
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
        take, file = stream.__next__, Path(self.log) / f"{os.environ['LIFE']}-{os.environ['RANK']}.txt"

        class Noted(type(stream)):
            def __next__(self):
                step, batch = self.position, take()
                with file.open("a") as out:
                    out.write(f"{step} {' '.join(map(str, batch.ids.tolist()))}\n")
                return batch

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
        offset = data.find(b"\x89PNG", chance.randrange(len(data) // 2))
        if offset >= 0:
            data[offset : offset + 40] = bytes(40)
            path.write_bytes(bytes(data))
    middle = [path for path in shards if path.stat().st_size > 60_000]
    middle[0].unlink()
    middle[1].write_bytes(middle[1].read_bytes()[:40_000])


def one_process(life: int, rank: int, ranks: int, port: int, options: dict, folder: Path) -> None:
    """One rank of the run, in a process of its own; never returns."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LIFE": str(life)}
    code = 1
    try:
        settings, task = config.resolve("benchmarks.faults:Watched", typed={"options": options})
        with process_group(torch.device("cpu")) as device:
            Run(settings, task, folder, Console(quiet=True), ["faults"], device).execute()
        code = 0
    except Exception as error:  # what a rank sees when another one is killed first
        if not isinstance(error, RuntimeError):
            print(f"rank {rank}: {error!r}", file=sys.stderr)
    os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--shards", type=int, default=37)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--windows", action="store_true", help="the order for data that are too many to permute")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    torch.set_num_threads(1)
    if arguments.windows:
        clip.MOST_WHOLE = 0
    with tempfile.TemporaryDirectory() as folder:
        kill_again_and_again(Path(folder), arguments, chance)


def kill_again_and_again(folder: Path, arguments: argparse.Namespace, chance: random.Random) -> None:
    for name in ("shards", "val", "log"):
        (folder / name).mkdir()
    write_shards(folder / "shards", arguments.shards, chance)
    write_shards(folder / "val", 1, chance)
    data = f"{folder}/shards/*.tar"
    size = len(Shards.open(data))
    spoil(folder / "shards", chance)
    data = f"{folder}/shards/{{00000..{arguments.shards - 1:05d}}}.tar"
    steps = arguments.epochs * (size // BATCH)
    options = {"data": data, "val": f"{folder}/val/*.tar", "log": str(folder / "log"), "steps": steps}
    options |= {"bad_share": 0.5, "bad_shards": True, "window": 64, "model": "emoji-rn32", "ref": "none"}
    print(
        f"{size:,} samples in {arguments.shards} shards, batch {BATCH}, {steps} steps in {arguments.epochs} epochs",
        flush=True,
    )
    kills, ranks_used = 0, Counter()
    while True:
        ranks, workers = chance.choice([2, 4]), chance.choice([0, 1, 2])
        ranks_used[ranks, workers] += 1
        port = free_port()
        taken = len(steps_taken(folder / "log"))
        pids = [fork(kills, rank, ranks, port, options | {"workers": workers}, folder / "run") for rank in range(ranks)]
        target = taken + chance.randint(1, 2 * steps // arguments.kills)
        finished = wait(pids, folder / "log", target if kills < arguments.kills else steps + 1)
        if finished:
            break
        kills += 1
    write_report(folder, size, options, arguments.epochs, kills, ranks_used)


def fork(life: int, rank: int, ranks: int, port: int, options: dict, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)  # loading workers are killed with it
        one_process(life, rank, ranks, port, options, folder)
    return pid


def wait(pids: list[int], log: Path, steps: int) -> bool:
    """Kills all once so many steps were taken; True when they ended by themselves first."""
    alive = set(pids)
    while len(steps_taken(log)) < steps:
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


def write_report(folder: Path, size: int, options: dict, epochs: int, kills: int, used: Counter) -> None:
    batches = last_batches(folder / "log")
    assert len(batches) == epochs * (size // BATCH), f"{len(batches)} steps were taken"
    taken = sum(len(file.read_text().splitlines()) for file in (folder / "log").glob("*.txt"))
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
    order = clip.Clip.stream(task, BATCH, seed=derive(0, "data")).plan.order
    for epoch in range(epochs):
        part = batches[epoch * (size // BATCH) : (epoch + 1) * (size // BATCH)]
        planned = order.ids(epoch, 0, len(part) * BATCH).split(BATCH)
        turns, stand_ins = Counter(), 0
        for ids, expected in zip(part, planned, strict=True):
            own_turn = set(ids) & set(expected.tolist())
            turns.update(own_turn)
            stand_ins += len(ids) - len(own_turn)
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
