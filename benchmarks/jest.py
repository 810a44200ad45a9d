"""Time and memory of JEST selection against the dense form, which recomputes whole matrices in every round."""

from functools import partial

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Goal, Report, Work
from benchmarks.official import dense_jest
from steering.contrastive.jest import Jest
from steering.selectors.selector import largest, sample

WIDTH, KEEP, SCALES = 512, 0.2, (30.0, 100.0)
SMALL = {"size": 256}


def prepare(*, method: str, size: int, chunks: int, device: str) -> Work:
    """One selection among ``size`` pairs; it returns the places that are chosen."""
    target, known = harness.pairs(harness.features(size, WIDTH, device=device), SCALES)
    number = chunks * int(size * KEEP / chunks)
    if method == "ours":
        selector = Jest(keep=KEEP, chunks=chunks)
        return lambda: selector(target, known, number=number, generator=torch.Generator().manual_seed(0))
    return lambda: dense_jest(
        target,
        known,
        keep=KEEP,
        chunks=chunks,
        first=lambda weights, size: weights.multinomial(size),
        later=lambda scores, size: (scores - scores.max()).exp().clamp(min=1e-38).multinomial(size),
    )


def check(device: str, size: int = 500) -> None:
    """Stops unless both choose the same pairs in the same order, in float64 and with the same noise."""
    target, known = harness.pairs(harness.features(size, 64, device=device, dtype=torch.float64), SCALES)
    for chunks in (2, 4, 8, 16):
        for draw in (True, False):
            chance, same = (torch.Generator().manual_seed(chunks) for _ in range(2))
            first, later = (partial(choose, generator=chance) for choose in (_linear, sample if draw else _largest))
            theirs = dense_jest(target, known, keep=KEEP, chunks=chunks, first=first, later=later)
            selector = Jest(keep=KEEP, chunks=chunks, draw=draw)
            mine = selector(target, known, number=len(theirs), generator=same)
            assert mine.tolist() == theirs.tolist(), f"{selector} does not choose as the dense form does"


def _linear(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return sample(weights.log(), number, generator)


def _largest(scores: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return largest(scores, number)


def main() -> None:
    parser = harness.arguments("jest", __doc__, rounds=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 32768], help="candidates")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 8], help="rounds of drawing")
    parser.add_argument(
        "--dense-up-to", type=int, default=8192, help="with 2 chunks; what is more work measures ours alone"
    )
    options = parser.parse_args()
    device = harness.prepare_process(options)
    check(options.device)
    report = Report("jest", device)
    report.notes = [
        f"One selection of a share of {KEEP} among n pairs of width {WIDTH}, in float32. Before anything is timed, "
        f"both are checked to choose the same pairs, in the same order, in float64 and with the same noise."
    ]
    rows = [["n", "chunks", "ours, s", "official, s", "official / ours", "ours, MiB", "official, MiB", "ratio"]]
    ratios = {"time": {}, "memory": {}}
    for size in options.sizes:
        for chunks in options.chunks:
            bearable = size**2 * chunks <= 2 * options.dense_up_to**2
            methods = ["ours", "official"] if bearable else ["ours"]
            rows.append(_row(report, options, device, methods, size, chunks, ratios))
            report.parts.clear()
            report.table(f"Medians (least to most) of {options.rounds} rounds", rows)
            report.goals = goals(ratios)
            report.save(options.out)  # after every line: the largest take long


def _row(report, options, device, methods, size, chunks, ratios) -> list[str]:
    settings = {"size": size, "chunks": chunks, "device": options.device}
    works = {name: prepare(method=name, **settings) for name in methods}
    spent = harness.race(works, options.rounds, device)
    del works
    held = {
        name: harness.peak_memory(
            "benchmarks.jest:prepare", {"method": name, **settings}, small=SMALL, threads=options.threads
        )
        for name in methods
    }
    report.figures[f"{size}, {chunks} chunks"] = {"timed": spent, "memory": held}
    seconds = {name: f"{harness.median(harness.seconds(each, device)):.4f}" for name, each in spent.items()}
    mebibytes = {name: f"{each / harness.MIB:.0f}" for name, each in held.items()}
    time = more = ""
    if "official" in methods:
        found = harness.ratio(spent["official"], spent["ours"], device)
        time, more = str(found), f"{held['official'] / held['ours']:.3g}"
        ratios["time"][size, chunks] = found.median
        ratios["memory"][size, chunks] = held["official"] / held["ours"]
    row = [str(size), str(chunks), seconds["ours"], seconds.get("official", ""), time]
    row += [mebibytes["ours"], mebibytes.get("official", ""), more]
    return row


def goals(ratios: dict[str, dict[tuple[int, int], float]]) -> list[Goal]:
    """The worst median over the sizes that were measured."""

    def worst(chunks: int, least: int) -> float | None:
        found = [value for (size, rounds), value in ratios["time"].items() if rounds == chunks and size >= least]
        return min(found, default=None)

    return [
        Goal("time, official / ours, 2 chunks", worst(2, 2048), 35),
        Goal("time, official / ours, 8 chunks, n 4096 and more", worst(8, 4096), 80),
        Goal("memory, official / ours, n 8192, 2 chunks", ratios["memory"].get((8192, 2)), 80),
    ]


if __name__ == "__main__":
    harness.run(main)
