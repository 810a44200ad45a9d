"""Time and memory of the contrastive loss, forward and backward, against dense forms of it.

Goals are those of the engine: see README.md in this folder for how to read them.
"""

import inspect
from typing import Any

import open_clip
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Goal, Ratio, Report, Spent, Work
from benchmarks.official import DenseLoss
from steering import KL, DualMemory, Pairs, Steerer

TEMPERATURE, EPSILON, RATE, WIDTH = 0.07, 1e-14, 0.9, 512
SMALL = {"size": 256}  # of the call that only warms up a process whose memory is measured
BUDGET = "budget" in inspect.signature(Steerer).parameters

# Name of a method: what it is made of. "known" is the reference, "half" bfloat16 products.
OURS = {
    "ours, no budget": {"known": True, "budget": 0},
    "ours": {"known": True},
    "ours, no budget, alone": {"budget": 0},
    "ours, alone": {},
    "ours bf16, no budget": {"known": True, "half": True, "budget": 0},
    "ours bf16": {"known": True, "half": True},
}
OURS = {name: parts for name, parts in OURS.items() if BUDGET or "budget" not in parts}
DENSE = {
    "official": {"known": True, "learn": True},
    "official, fixed temperature": {"known": True},
    "official, alone": {"learn": True},
    "official bf16": {"known": True, "learn": True, "half": True},
    "ClipLoss": {},
    "ClipLoss bf16": {"half": True},
}


def prepare(*, method: str, size: int, device: str, exact: bool = False) -> Work:
    """One forward and backward pass of a method on ``size`` pairs; it returns the features' gradients."""
    sides = harness.features(size, WIDTH, device=device, dtype=torch.float64 if exact else torch.float32)
    sides[0].requires_grad_()
    sides[1].requires_grad_()
    parts: dict[str, Any] = OURS.get(method, DENSE.get(method, {}))
    loss = _ours(sides, **parts) if method in OURS else _dense(sides, method, **parts)

    def work() -> list[Tensor]:
        sides[0].grad = sides[1].grad = None
        loss().backward()
        assert sides[0].grad is not None and sides[1].grad is not None
        return [sides[0].grad, sides[1].grad]

    return work


def _ours(sides: list[Tensor], *, known: bool = False, half: bool = False, **budget: Any):
    size = len(sides[0])
    epsilon = EPSILON * size / (size - 1)
    memory = DualMemory(2 * size, gamma=RATE)
    steerer = Steerer(KL(temperature=TEMPERATURE, epsilon=epsilon), reference_scale=1.0, memory=memory, **budget)
    ids = torch.arange(size, device=sides[0].device)

    def loss() -> Tensor:
        target, reference = harness.pairs([side.bfloat16() for side in sides] if half else sides)
        return steerer(target, reference if known else None, ids=ids).loss

    return loss


def _dense(sides: list[Tensor], method: str, *, known: bool = False, learn: bool = False, half: bool = False):
    size, device = len(sides[0]), sides[0].device
    scale = torch.tensor(1 / TEMPERATURE, dtype=sides[0].dtype, device=device, requires_grad=learn)
    target, reference = Pairs(sides[0], sides[1], scale), Pairs(sides[2], sides[3])
    clip, dense = open_clip.ClipLoss(), DenseLoss(size, gamma=RATE, epsilon=EPSILON)
    ids = torch.arange(size)  # of a table on the CPU, as there

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            if method.startswith("ClipLoss"):
                return clip(target.left, target.right, scale)
            return dense(target, reference if known else None, ids)

    return loss


def check(device: str, size: int = 96) -> None:
    """Stops unless our gradient is that of the dense form, in float64, over three steps of the moving average.

    Theirs adds up both directions and averages over n anchors, and their u is a mean over n: n - 1 of ours over n.
    Ours averages over 2 n anchors. So their gradient is ours times 2 n / (n - 1), and their epsilon that of ours
    times (n - 1) / n.
    """
    dtype, torch_default = torch.float64, torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the dense form's masks are integers, and become whatever is the default
    try:
        for method, dense in (("ours", "official"), ("ours, alone", "official, alone")):
            mine, theirs = (prepare(method=name, size=size, device=device, exact=True) for name in (method, dense))
            for step in range(3):
                for a, b in zip(mine(), theirs(), strict=True):
                    error = float((a * (2 * size / (size - 1)) - b).abs().max() / b.abs().max())
                    assert error < 1e-9, f"{method} is not {dense}: relative error {error:.1e} in step {step + 1}"
    finally:
        torch.set_default_dtype(torch_default)


def main() -> None:
    parser = harness.arguments("loss", __doc__, rounds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="batches")
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *DENSE], default=[*OURS, *DENSE], help="by name (all)")
    parser.add_argument("--dense-up-to", type=int, default=8192, help="larger batches measure ours alone")
    options = parser.parse_args()
    device = harness.prepare_process(options)
    check(options.device)
    report = Report("loss", device)
    report.notes = [
        f"Forward and backward of n pairs of width {WIDTH}, temperature {TEMPERATURE}, moving average of rate {RATE}. "
        f"Before anything is timed, our gradient is checked against the dense form's in float64."
    ]
    timed, held = {}, {}
    for size in options.sizes:
        methods = [name for name in options.methods if name in OURS or size <= options.dense_up_to]
        works = {name: prepare(method=name, size=size, device=options.device) for name in methods}
        timed[size] = harness.race(works, options.rounds, device)
        del works
        held[size] = {name: _memory(name, size, options) for name in methods}
        _table(report, size, timed[size], held[size], device)
        report.figures = {"timed": timed, "memory": held}
        report.goals = goals(timed, held, device)
        report.save(options.out)  # after every size: the largest take long


def _memory(name: str, size: int, options) -> int:
    settings = {"method": name, "size": size, "device": options.device}
    return harness.peak_memory("benchmarks.loss:prepare", settings, small=SMALL, threads=options.threads)


def _table(report: Report, size: int, timed: dict[str, list[Spent]], held: dict[str, int], device) -> None:
    """One row a method; ratios say how many times as long the dense form took."""
    against = [name for name in ("official", "official bf16", "ClipLoss", "ClipLoss bf16") if name in timed]
    rows = [["method", "seconds", "MiB", *(f"{name} / it" for name in against)]]
    for name, spent in timed.items():
        ratios = [str(harness.ratio(timed[dense], spent, device)) for dense in against]
        seconds = harness.median(harness.seconds(spent, device))
        rows.append([name, f"{seconds:.4f}", f"{held[name] / harness.MIB:.0f}", *ratios])
    report.table(f"n = {size}: medians, ratios with least and most of the rounds", rows)


def goals(timed: dict[int, dict[str, list[Spent]]], held: dict[int, dict[str, int]], device) -> list[Goal]:
    """The worst median over the sizes a goal speaks of, where all of them were measured."""

    def time(slow: str, fast: str, *sizes: int) -> float | None:
        if not all(slow in timed.get(size, {}) and fast in timed.get(size, {}) for size in sizes):
            return None
        found: list[Ratio] = [harness.ratio(timed[size][slow], timed[size][fast], device) for size in sizes]
        return min(each.median for each in found)

    def memory(slow: str, size: int) -> float | None:
        ours = held.get(size, {}).get("ours, no budget")
        return held[size][slow] / ours if ours and slow in held[size] else None

    largest = held.get(32768, {}).get("ours, no budget")
    bounds = [
        ("official", "ours, no budget", (4096, 8192), 3),
        ("official", "ours", (4096, 8192), 4.3),
        ("official", "ours", (1024, 2048), 2.5),
        ("official bf16", "ours bf16", (4096, 8192), 6),
        ("official", "ours bf16", (4096, 8192), 7.5),
        ("ClipLoss", "ours, no budget", (4096, 8192), 1.2),
        ("ClipLoss", "ours", (4096, 8192), 1.7),
        ("ClipLoss", "ours, no budget, alone", (4096, 8192), 1.7),
        ("ClipLoss", "ours, alone", (4096, 8192), 2.1),
    ]
    return [
        *(
            Goal(f"time, {slow} / {fast}, n = {sizes[0]} and {sizes[1]}", time(slow, fast, *sizes), least)
            for slow, fast, sizes, least in bounds
        ),
        Goal("memory, official / ours, no budget, n = 8192", memory("official", 8192), 100),
        Goal("memory, ClipLoss / ours, no budget, n = 8192", memory("ClipLoss", 8192), 20),
        Goal("MiB of ours, no budget, n = 32768", largest and largest / harness.MIB, most=150),
    ]


if __name__ == "__main__":
    harness.run(main)
