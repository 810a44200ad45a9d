"""What a call of the Steerer costs against the fewest lines by hand, and what it adds to a step of a small network."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import harness
from benchmarks.harness import Goal, Report, Work
from steering import KL, CVaR, DualMemory, Steerer, Uniform

SAMPLES, STEPS = 4096, 4  # of training data, and of a timing: short ones meet the same disturbances
RULES: dict[str, Callable[[], Steerer]] = {
    "uniform": lambda: Steerer(Uniform()),
    "kl, temperature": lambda: Steerer(KL(temperature=0.5)),
    "kl, temperature, moving average": lambda: Steerer(KL(temperature=0.5), memory=DualMemory(gamma=0.8)),
    "kl, rho": lambda: Steerer(KL(rho=80), population=SAMPLES),
    "cvar": lambda: Steerer(CVaR(alpha=0.5)),
}
BY_HAND = "by hand"
SIMPLE = ("uniform", "kl, temperature", "cvar")
MASKED = ("uniform", "kl, temperature")  # of rows that are filled up


def prepare(batch: int, device: torch.device) -> dict[str, Work]:
    """``STEPS`` training steps with every loop, of one and the same network: another would lie elsewhere in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)])
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, classes = torch.randn(SAMPLES, 784, device=device), torch.randint(10, (SAMPLES,), device=device)
    reference = torch.rand(SAMPLES, device=device) * 3

    def work(steerer: Steerer | None) -> None:
        for step in range(STEPS):
            ids = torch.arange(step * batch, (step + 1) * batch, device=device) % SAMPLES
            optimizer.zero_grad(set_to_none=True)
            if steerer is None:
                cross_entropy(model(inputs[ids]), classes[ids]).backward()
            else:
                losses = cross_entropy(model(inputs[ids]), classes[ids], reduction="none")
                steerer(losses, reference[ids], ids=ids).loss.backward()
            optimizer.step()

    return {BY_HAND: partial(work, None), **{name: partial(work, make()) for name, make in RULES.items()}}


def by_hand(rule: str, losses: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """The steered loss in the fewest lines that a person would write; a cut-off is solved for by nobody in a line."""
    excess = losses - reference
    if rule == "uniform":
        return excess.mean() if mask is None else ((excess * mask).sum(-1) / mask.sum(-1)).mean()
    if rule.startswith("cvar"):
        return excess.topk(len(excess) // 2).values.mean()
    tilted = excess.detach() / 0.5
    if mask is not None:
        return (tilted.masked_fill(~mask, -torch.inf).softmax(-1) * excess).sum(-1).mean()
    return (tilted.softmax(0) * len(excess) * excess).mean()


def alone(method: str, shape: Sequence[int], device: torch.device) -> dict[str, Work]:
    """``STEPS`` calls of a Steerer without a network, and of the same by hand: forward and backward from the losses.

    Args:
        shape: ``[n]``, or ``[rows, columns]`` of which every row has a length of its own.
    """
    steerer = RULES[method]()
    reference, ids = torch.rand(*shape, device=device), torch.arange(shape[0], device=device)
    losses = torch.rand(*shape, device=device, requires_grad=True)
    lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1), device=device)
    mask = torch.arange(shape[-1], device=device) < lengths if len(shape) == 2 else None

    def steered() -> None:
        for _ in range(STEPS):
            steerer(losses, reference, ids=ids, mask=mask).loss.backward()

    def hand_written() -> None:
        for _ in range(STEPS):
            by_hand(method, losses, reference, mask).backward()

    return {"steerer": steered, BY_HAND: hand_written}


def profile(method: str, batch: int, device: torch.device) -> str:
    """The operations of a Steerer by what they cost themselves."""
    work = alone(method, [batch], device)["steerer"]
    for _ in range(10):
        work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(10):
            work()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40)


def main() -> None:
    parser = harness.arguments("steerer", __doc__, rounds=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256], help="samples of a step")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 4096, 65536, 1_000_000], help="losses of a call")
    parser.add_argument("--profile", choices=RULES, help="show what a rule's operations cost, and measure nothing")
    parser.add_argument("--rows", type=int, nargs=2, default=[256, 2048], help="rows and columns of a masked call")
    options = parser.parse_args()
    device = harness.prepare_process(options)
    if options.profile:
        print(profile(options.profile, options.batches[0], device))
        return
    report = Report("steerer", device)
    report.notes = [
        f"Steps are of a network 784-512-512-10 with AdamW in float32, {STEPS} a timing. A call is that of a Steerer "
        f"with reference losses, forward and backward from the losses on, against the fewest lines by hand. For kl "
        f"with rho or a moving average these are the lines of a fixed temperature, which find and remember no dual. "
        f"The variances of 64 calls are computed in one go, about 1.3 ms or 0.02 ms a call, which medians of four "
        f"calls do not show."
    ]
    for shape in [*([size] for size in options.sizes), options.rows]:
        many = math.prod(shape) >= 500_000
        _measure_calls(report, shape, max(5, options.rounds // 6) if many else options.rounds, device)
    for batch in options.batches:
        _measure_steps(report, batch, options.rounds, device)
    report.save(options.out)


def _measure_calls(report: Report, shape: Sequence[int], rounds: int, device: torch.device) -> None:
    rows, figures = [["rule", "ms a call", "times by hand"]], {}
    size = f"{shape[0]:,} losses" if len(shape) == 1 else f"{list(shape)} losses with a mask"
    for name in RULES if len(shape) == 1 else MASKED:
        spent = harness.race(alone(name, shape, device), rounds, device)
        call = harness.median(harness.seconds(spent["steerer"], device)) / STEPS * 1000
        ratio = harness.ratio(spent["steerer"], spent[BY_HAND], device)
        rows.append([name, f"{call:.3f}", str(ratio)])
        figures[name] = spent
        if name in SIMPLE and math.prod(shape) >= 65536:
            report.goals.append(Goal(f"call of {name} / by hand, {size}", ratio.median, most=2))
        elif name in SIMPLE:
            report.goals.append(Goal(f"call of {name}, {size}, ms", call, most=0.3))
    report.table(size, rows)
    report.figures[f"calls, {'x'.join(map(str, shape))}"] = figures


def _measure_steps(report: Report, batch: int, rounds: int, device: torch.device) -> None:
    spent = harness.race(prepare(batch, device), rounds, device)
    rows = [["loop", "ms a step", "times by hand"]]
    for name in spent:
        step = harness.median(harness.seconds(spent[name], device)) / STEPS * 1000
        ratio = harness.ratio(spent[name], spent[BY_HAND], device)
        rows.append([name, f"{step:.3f}", str(ratio)])
        if name in RULES:
            report.goals.append(Goal(f"step with {name} / by hand, batch {batch}", ratio.median, most=1.05))
    report.table(f"steps of batch {batch}", rows)
    report.figures[f"steps, {batch}"] = spent


if __name__ == "__main__":
    harness.run(main)
