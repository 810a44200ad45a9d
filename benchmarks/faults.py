"""Kills a training again and again, in every way that befalls one, and counts how often every sample was seen.

    python -m benchmarks.faults --kills 1000 --folder faults

Writes shards of very different sizes, indexes them, then loses one, cuts one short and spoils some pictures. A run of a
few epochs begins on one to four processes with none to two loading workers each. At random steps something happens:
all processes are killed, or a single one, or a loading worker; one of them is stopped (SIGSTOP); the disk or the shared
memory is full. The processes that are left have to end by themselves, in one line that says what it was. Then the run
is resumed with other numbers; once it is finished the next one begins, until there were as many kills as asked for.

What counts as seen are the batches of the steps that stayed: a step that was taken again after a kill counts once, with
the last batch. Prints, for every run and epoch, for how many samples their turn came 0, 1 and 2 times, and why 0: the
sample cannot be used (another stood in for it, which is not its own turn), or it was left over at the end, where less
than a batch remains. With --folder it can be stopped at any time; the same line goes on.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, Goal, Report
from benchmarks.watched import BATCH, Watched, can_fill_shared_memory, last_batches, live, spoil, usable, write_shards
from steering.clip import task as clip
from steering.clip.data.shards import Shards
from steering.heartbeat import process_state
from steering.training.seeds import derive

LIMIT = 120.0  # seconds in which those that are left have to end by themselves
BLOWS = {  # how often, and what the line has to say
    "killed run": (8, ""),
    "killed rank": (4, r"rank \d \(pid \d+ on \S+\) has gone"),
    "killed worker": (4, r"loading worker .*has gone"),
    "stopped rank": (1, r"rank \d \(pid \d+ on \S+\) is stopped"),
    "stopped worker": (1, r"loading worker .* was stopped"),
    "full disk": (1, r"cannot write"),
    "full shared memory": (1, r"shared memory"),
}


@dataclass(frozen=True)
class Kill:
    """What happened once.

    Attributes:
        run: number of the run that it befell.
        blow: one of BLOWS.
        ranks, workers: processes, and loading workers of each.
        steps: that were taken since the run was resumed.
        seconds: until all that were left had ended, from the blow on.
        line: what was said.
        fault: what went wrong with the ending, "" where nothing did.
    """

    run: int
    blow: str
    ranks: int
    workers: int
    steps: int
    seconds: float
    line: str
    fault: str


class Life:
    """The processes of a run from one start to its end."""

    def __init__(self, number: int, folder: Path, options: dict, ranks: int, blow: str):
        self.log, self.errors = Path(options["log"]) / f"{number}-0.txt", folder / "errors"
        self.errors.mkdir(exist_ok=True)
        for path in self.errors.iterdir():  # of an earlier life with more ranks
            path.unlink()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LIFE": str(number), "STEER_PATIENCE": os.environ.get("STEER_PATIENCE", "3")}
        self.codes: dict[int, int] = {}
        self.pids = [self._fork(rank, folder / "run", options, blow) for rank in range(ranks)]

    def _fork(self, rank: int, folder: Path, options: dict, blow: str) -> int:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)  # loading workers are swept with it
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.dup2(os.open(self.errors / str(rank), os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
            live(rank, options, folder, blow)
        return pid

    @property
    def steps(self) -> int:
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def left(self) -> list[int]:
        """Processes that have not ended yet."""
        for pid in [pid for pid in self.pids if pid not in self.codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.codes[pid] = status
        return [pid for pid in self.pids if pid not in self.codes]

    def wait(self, condition, seconds: float) -> bool:
        """Waits until a condition holds or all have ended; False if it took too long."""
        until = time.monotonic() + seconds
        while self.left() and not condition():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def wait_for_steps(self, number: int) -> None:
        self.wait(lambda: self.steps >= number, 600)

    def workers(self) -> list[int]:
        """Loading workers of all ranks."""
        workers = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            workers += [int(stat.parent.name)] if parent in self.pids else []
        return sorted(workers)

    def sweep(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.wait(lambda: False, LIMIT)

    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.errors.iterdir()))


def strike(life: Life, blow: str, chance: random.Random) -> str:
    """Does to the processes what shall befall them and waits for their end; gives what went wrong with it."""
    victims = []
    if blow == "killed run":
        life.sweep()
    elif blow.endswith("rank"):
        victims = [chance.choice(life.pids)]
    elif blow.endswith("worker"):
        life.wait(lambda: bool(life.workers()), LIMIT)
        victims = [chance.choice(life.workers() or life.pids)]
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP if blow.startswith("stopped") else signal.SIGKILL)
    others = [pid for pid in life.pids if pid not in victims]
    in_time = life.wait(lambda: not set(others) & set(life.left()), LIMIT)
    alive = [f"{pid} {process_state(pid)}" for pid in others if pid in life.left()]
    life.sweep()
    said = life.said()
    if not in_time:
        return f"{len(alive)} processes had not ended after {LIMIT:g} s: {', '.join(alive)}"
    if "Traceback" in said:
        return f"a traceback: {said.strip().splitlines()[-1][:200]}"
    if not re.search(BLOWS[blow][1], said):
        return f"no line that says it: {said[-200:]!r}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--shards", type=int, default=37)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--windows", action="store_true", help="the order for data that are too many to permute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(BLOWS), action="append", help="nothing else befalls the runs")
    parser.add_argument("--folder", type=Path, help="where to work and go on; a temporary one by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.windows:
        clip.MOST_WHOLE = 0
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(kill_again_and_again((arguments.folder or Path(temporary)).absolute(), arguments))


def prepare(folder: Path, arguments: argparse.Namespace) -> dict:
    """Shards, some of them broken, and the options of a run on them."""
    data = f"{folder}/shards/{{00000..{arguments.shards - 1:05d}}}.tar"
    if not (folder / "size").exists():
        chance = random.Random(arguments.seed)
        for name in ("shards", "val"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_shards(folder / "shards", range(arguments.shards), chance)
        write_shards(folder / "val", range(200, 201), chance)
        size = len(Shards.open(data))
        spoil(folder / "shards", chance)
        (folder / "size").write_text(str(size))
    size = int((folder / "size").read_text())
    options = {"data": data, "val": f"{folder}/val/*.tar", "steps": arguments.epochs * (size // BATCH)}
    return options | {"bad_share": 1.0, "bad_shards": True, "window": 64, "model": "emoji-rn32", "ref": "none"}


def kill_again_and_again(folder: Path, arguments: argparse.Namespace) -> int:
    options = prepare(folder, arguments)
    records = folder / "kills.jsonl"
    kills = [Kill(**json.loads(line)) for line in records.read_text().splitlines()] if records.exists() else []
    possible = {blow: often for blow, (often, _) in BLOWS.items() if blow in (arguments.only or BLOWS)}
    if not can_fill_shared_memory():
        possible.pop("full shared memory", None)
    runs = max((kill.run for kill in kills), default=0)
    starts = 1000 * len(list(folder.glob("start-*")))  # numbers of lives that no earlier start has used
    (folder / f"start-{starts}").touch()
    while True:
        place = folder / f"run-{runs:03d}"
        (place / "log").mkdir(parents=True, exist_ok=True)
        if (place / "run" / "summary.json").exists():
            if len(kills) >= arguments.kills:
                return write_report(folder, options, kills, runs + 1, arguments)
            runs += 1
            continue
        chance = random.Random(f"{arguments.seed}/{len(kills)}/{starts}")
        blow = chance.choices(list(possible), list(possible.values()))[0] if len(kills) < arguments.kills else ""
        ranks = chance.choice([2, 3, 4]) if blow.endswith("rank") else chance.choice([1, 2, 3, 4])
        workers = chance.choice([1, 2]) if blow.endswith(("worker", "memory")) else chance.choice([0, 1, 2])
        typed = options | {"workers": workers, "log": str(place / "log")}
        life = Life(starts + len(kills), place, typed, ranks, blow)
        steps = chance.randint(1, 12)
        life.wait_for_steps(steps if blow else sys.maxsize)
        if not life.left() and not any(life.codes.values()):
            continue  # it was finished before anything happened
        began = time.monotonic()
        fault = strike(life, blow, chance) if blow else f"it ended by itself: {life.said()[-200:]!r}"
        lines = [line for line in life.said().splitlines() if line.startswith("steer: ")]
        line = next((line for line in lines if re.search(BLOWS[blow][1], line)), "") if blow else ""
        kills.append(Kill(runs, blow, ranks, workers, life.steps, round(time.monotonic() - began, 1), line, fault))
        with records.open("a") as file:
            file.write(json.dumps(asdict(kills[-1])) + "\n")
        if len(kills) > 20 and all(kill.fault for kill in kills[-20:]):
            print("nothing but faults: the run cannot go on", flush=True)
            return 1
        if fault:
            (place / f"fault-{len(kills)}.txt").write_text(life.said())
        what = f"{len(kills)}/{arguments.kills}: {blow}, {ranks} ranks, {workers} workers, {life.steps} steps"
        print(f"{what}, {kills[-1].seconds:.1f} s: {fault and f'FAULT {fault} '}{line[:110]}", flush=True)


def write_report(folder: Path, options: dict, kills: list[Kill], runs: int, arguments: argparse.Namespace) -> int:
    size = int((folder / "size").read_text())
    settings: Any = options | {"log": ""}
    task = Watched(**settings)
    unusable = {number for number in range(size) if not usable(task, number)}
    result = Report("faults-windows" if clip.MOST_WHOLE == 0 else "faults", torch.device("cpu"))
    result.notes = [
        f"{size:,} samples, {len(unusable)} of which cannot be used (spoilt, cut off, or of a shard that is gone).",
        f"{len(kills):,} kills in {runs} runs of {options['steps']} steps; the last of each run was not killed.",
    ]
    rows = [["what happened", "times", "seconds to the end, median", "longest", "faults"]]
    for blow in BLOWS:
        those = [kill for kill in kills if kill.blow == blow]
        seconds = sorted(kill.seconds for kill in those) or [0.0]
        faults = sum(bool(kill.fault) for kill in those)
        rows.append([blow, f"{len(those):,}", f"{seconds[len(seconds) // 2]:.1f}", f"{seconds[-1]:.1f}", str(faults)])
    result.table("Kills", rows)
    used = Counter((kill.ranks, kill.workers) for kill in kills)
    sizes = [[str(ranks), *(f"{used[ranks, workers]:,}" for workers in range(3))] for ranks in range(1, 5)]
    result.table("Processes", [["ranks", "0 workers", "1 worker", "2 workers"], *sizes])
    rows = [["run", "epoch", "turn came 0 times", "once", "twice", "0: unusable", "0: left over", "0: neither"]]
    order = clip.Clip.stream(task, BATCH, seed=derive(0, "data")).plan.order
    for run in range(runs):
        batches = last_batches(folder / f"run-{run:03d}" / "log")
        assert len(batches) == options["steps"], f"{len(batches)} steps were taken"
        for epoch in range(arguments.epochs):
            part = batches[epoch * (size // BATCH) : (epoch + 1) * (size // BATCH)]
            planned = order.ids(epoch, 0, len(part) * BATCH).split(BATCH)
            turns: Counter = Counter()
            for ids, expected in zip(part, planned, strict=True):
                turns.update(set(ids) & set(expected.tolist()))
            never, often = set(range(size)) - set(turns), Counter(turns.values())
            over = never - set(torch.cat(planned).tolist()) - unusable
            cells = len(never), often[1], often[2], len(never & unusable), len(over), len(never - over - unusable)
            rows.append([f"{cell:,}" for cell in (run + 1, epoch + 1, *cells)])
    result.table("Samples", rows)
    faults = [kill.fault for kill in kills if kill.fault]
    result.notes += [f"Faults: {'; '.join(faults[:10])}"] * bool(faults)
    result.goals = [
        Goal("kills", len(kills), least=arguments.kills),
        Goal("kills after which the others did not end in one line that says why", len(faults), most=0),
        Goal(
            "samples whose turn came twice in an epoch", max(int(row[4].replace(",", "")) for row in rows[1:]), most=0
        ),
        Goal("usable samples left out without being left over", max(int(row[7]) for row in rows[1:]), most=0),
    ]
    result.save(arguments.out)
    return int(any(goal.verdict != "met" for goal in result.goals))


if __name__ == "__main__":
    main()
