"""What the Steerer adds to a training step of a small network, against the same loop written by hand."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
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


def prepare(batch: int, device: torch.device) -> dict[str, Work]:
    """``STEPS`` training steps with every loop, of one and the same network: another would lie elsewhere in memory."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)])
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, classes = torch.randn(SAMPLES, 784, device=device), torch.randint(10, (SAMPLES,), device=device)
    known = torch.rand(SAMPLES, device=device) * 3

    def work(steerer: Steerer | None) -> None:
        for step in range(STEPS):
            ids = torch.arange(step * batch, (step + 1) * batch, device=device) % SAMPLES
            optimizer.zero_grad(set_to_none=True)
            if steerer is None:
                cross_entropy(model(inputs[ids]), classes[ids]).backward()
            else:
                losses = cross_entropy(model(inputs[ids]), classes[ids], reduction="none")
                steerer(losses, known[ids], ids=ids).loss.backward()
            optimizer.step()

    return {BY_HAND: partial(work, None), **{name: partial(work, make()) for name, make in RULES.items()}}


def alone(method: str, batch: int, device: torch.device) -> Work:
    """``STEPS`` calls of a Steerer without a network: forward and backward from the losses on."""
    steerer = RULES[method]()
    known, ids = torch.rand(batch, device=device), torch.arange(batch, device=device)
    losses = torch.rand(batch, device=device, requires_grad=True)

    def work() -> None:
        for _ in range(STEPS):
            steerer(losses, known, ids=ids).loss.backward()

    return work


def profile(method: str, batch: int, device: torch.device) -> str:
    """The operations of a Steerer by what they cost themselves."""
    work = alone(method, batch, device)
    for _ in range(10):
        work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(10):
            work()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40)


def main() -> None:
    parser = harness.arguments("steerer", __doc__, rounds=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256], help="samples of a step")
    parser.add_argument("--profile", choices=RULES, help="show what a rule's operations cost, and measure nothing")
    options = parser.parse_args()
    device = harness.prepare_process(options)
    if options.profile:
        print(profile(options.profile, options.batches[0], device))
        return
    report = Report("steerer", device)
    report.notes = [
        f"784-512-512-10, AdamW, float32; {STEPS} steps a timing. A Steerer alone is its call and the backward pass "
        f"from the losses on; by hand there is a mean, so that not all of it is extra."
    ]
    for batch in options.batches:
        _measure(report, batch, options.rounds, device)
    report.save(options.out)


def _measure(report: Report, batch: int, rounds: int, device: torch.device) -> None:
    spent = harness.race(prepare(batch, device), rounds, device)
    parts = harness.race({name: alone(name, batch, device) for name in RULES}, rounds, device)
    rows = [["loop", "ms a step", "times by hand", "Steerer alone, ms"]]
    for name in spent:
        step = harness.median(harness.seconds(spent[name], device)) / STEPS * 1000
        own = harness.median(harness.seconds(parts[name], device)) / STEPS * 1000 if name in parts else 0
        ratio = harness.ratio(spent[name], spent[BY_HAND], device)
        rows.append([name, f"{step:.3f}", str(ratio), f"{own:.3f}"])
        if name in RULES:
            text = f"step with {name} / by hand, batch {batch}"
            report.goals.append(Goal(text, ratio.median, most=1.05))
    report.table(f"batch {batch}", rows)
    report.figures[str(batch)] = {"steps": spent, "alone": parts}


if __name__ == "__main__":
    harness.run(main)
