"""What every benchmark shares: paired rounds, peak memory in a fresh process, and a dated result file."""

import argparse
import ctypes
import gc
import importlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steering import Pairs
from steering.atomic_files import write, write_json
from steering.errors import RunError, UserError

RESULTS = Path(__file__).parent / "results"
MIB = 2**20

Work = Callable[[], Any]


class Spent(NamedTuple):
    """What one call took, in seconds: of the processor (all threads together), and of the clock.

    On CUDA ``wall`` is the device's own, between two events.
    """

    cpu: float
    wall: float


class Ratio(NamedTuple):
    """Of two methods, round by round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def race(methods: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[Spent]]:
    """Runs all methods in turn, round after round, so that what else the machine does falls on all of them.

    Args:
        methods: by name. Each is called once before anything is timed.
        rounds: how often each is timed.
    """
    for work in methods.values():
        work()
    spent: dict[str, list[Spent]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, work in methods.items():
            spent[name].append(clock(work, device))
    return spent


def clock(work: Work, device: torch.device) -> Spent:
    """Times one call."""
    gc.collect()
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize(device)
        cpu = time.process_time()
        events[0].record()
        work()
        events[1].record()
        torch.cuda.synchronize(device)
        return Spent(time.process_time() - cpu, events[0].elapsed_time(events[1]) / 1000)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(time.process_time() - cpu, time.perf_counter() - wall)


def seconds(spent: Sequence[Spent], device: torch.device) -> list[float]:
    """What ratios are made of: processor time on a CPU, where others may be at work too, else the device's time."""
    return [each.wall if device.type == "cuda" else each.cpu for each in spent]


def ratio(slow: Sequence[Spent], fast: Sequence[Spent], device: torch.device) -> Ratio:
    """How many times as long as ``fast`` the other one took: median, least and most of the rounds."""
    pairs = zip(seconds(slow, device), seconds(fast, device), strict=True)
    rounds = sorted(a / b for a, b in pairs)
    return Ratio(median(rounds), rounds[0], rounds[-1])


def median(values: Sequence[float]) -> float:
    ranked = sorted(values)
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2


def peak_memory(prepare: str, settings: Mapping[str, Any], *, small: Mapping[str, Any], threads: int) -> int:
    """Peak memory of one call, in bytes, above what the process held before it; measured in a fresh process.

    Args:
        prepare: ``module:function``; the function makes the call from settings.
        settings: of the call that is measured, as JSON can hold them; ``device`` says where.
        small: replaces settings of a first call, which is not measured and loads what every call needs.
    """
    task = json.dumps({"prepare": prepare, "settings": {**settings}, "small": {**small}, "threads": threads})
    command = [sys.executable, "-m", "benchmarks.harness", task]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"the process that measures the memory of {prepare} failed: {reason}; use a smaller --sizes")
    return int(done.stdout.split()[-1])


def _measure_peak(task: Mapping[str, Any]) -> int:
    torch.set_num_threads(task["threads"])
    module, _, name = task["prepare"].partition(":")
    prepare = getattr(importlib.import_module(module), name)
    device = torch.device(task["settings"].get("device", "cpu"))
    prepare(**{**task["settings"], **task["small"]})()
    work = prepare(**task["settings"])
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is what is held now
    before = _held("VmRSS")
    work()
    return _held("VmHWM") - before


def _give_back() -> None:
    """Freed memory that the allocator still holds would hide as much of the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _held(field_name: str) -> int:
    """Of this process, in bytes."""
    found = re.search(rf"{field_name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"this kernel does not tell {field_name}"
    return int(found[1]) * 1024


def features(size: int, width: int, *, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Lefts and rights of a target, then of a reference, ``[size, width]`` each, of length one; pairs agree."""
    chance = torch.Generator().manual_seed(seed)
    sides = torch.randn(4, size, width, generator=chance, dtype=torch.float64 if dtype == torch.float64 else None)
    for own, other in ((1, 0), (3, 2)):
        sides[own] += 0.5 * sides[other]
    return list(normalize(sides, dim=-1).to(device, dtype).unbind())


def pairs(sides: Sequence[Tensor], scales: Sequence[float] = (1.0, 1.0)) -> tuple[Pairs, Pairs]:
    """Target and reference of ``features``."""
    return Pairs(sides[0], sides[1], scales[0]), Pairs(sides[2], sides[3], scales[1])


@dataclass(frozen=True)
class Goal:
    """What a benchmark was written to decide.

    Attributes:
        found: None where this run did not measure it.
        least, most: one of both.
    """

    text: str
    found: float | None
    least: float | None = None
    most: float | None = None

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        enough = self.least is None or self.found >= self.least
        return "met" if enough and (self.most is None or self.found <= self.most) else "not met"

    @property
    def bound(self) -> str:
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"


@dataclass
class Report:
    """A dated result: tables and goals, as Markdown for people and as JSON for tools.

    Args:
        name: of the benchmark.
        device: where it ran.
    """

    name: str
    device: torch.device
    parts: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def table(self, title: str, rows: list[list[str]]) -> None:
        """Adds a table, whose first row is its head, and shows it."""
        self.parts.append((title, rows))
        print(f"\n{title}\n\n{_table(rows)}", flush=True)

    def markdown(self) -> str:
        machine = "\n".join(f"- {key}: {value}" for key, value in hardware(self.device).items())
        text = [f"# {self.name}, {date.today()}", f"    {_command()}", machine, *self.notes]
        if self.goals:
            goals = [[goal.text, goal.bound, _number(goal.found), goal.verdict] for goal in self.goals]
            text += ["## Goals", _table([["goal", "bound", "found", ""], *goals])]
        for title, rows in self.parts:
            text += [f"## {title}", _table(rows)]
        return "\n\n".join(text) + "\n"

    def save(self, folder: Path = RESULTS) -> Path:
        """Writes ``YYYY-MM-DD-NAME.md`` and ``.json``; a second run of a day replaces the first."""
        stem = f"{date.today()}-{self.name}"
        goals = [{**asdict(goal), "verdict": goal.verdict} for goal in self.goals]
        whole = {"name": self.name, "date": str(date.today()), "command": _command(), "goals": goals}
        write_json(folder / f"{stem}.json", {**whole, "hardware": hardware(self.device), "figures": self.figures})
        path = write(folder / f"{stem}.md", self.markdown())
        print(f"\n{path}")
        return path


def arguments(name: str, text: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(text or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="timings of each method (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark's main; what its user, or the machine, is to blame for is told in one line."""
    try:
        main()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


def prepare_process(options: argparse.Namespace) -> torch.device:
    """Checks the options that all share and sets up torch."""
    if options.rounds < 1 or options.threads < 1:
        raise UserError(f"--rounds and --threads are at least 1, got {options.rounds} and {options.threads}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a CUDA device, and torch finds none: use --device cpu")
    torch.set_num_threads(options.threads)
    return device


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on; no names of machines or people."""
    found = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    """Model, family and widest vector instructions: clouds give models no better name than their maker's."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = f"{facts.get('model name', 'unknown')} (family {facts.get('cpu family')}, model {facts.get('model')})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    name = module.name if module else "benchmarks"
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    print(_measure_peak(json.loads(sys.argv[1])))
