"""The share of a CLIP training step that goes into the loss, with ViT-B/32 towers of random weights."""

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Report, Spent
from steering import KL, DualMemory, Pairs, Steerer
from steering.clip.models import Towers, build

ARCHITECTURE, TEMPERATURE, RATE = "ViT-B-32", 0.01, 0.9
PARTS = ["towers, forward", "reference, online", "loss, forward and backward", "towers, backward", "AdamW"]


class Step:
    """One training step that can be timed part by part: the loss works on detached features."""

    def __init__(self, batch: int, device: torch.device):
        torch.manual_seed(0)
        self.target, self.reference = (build(ARCHITECTURE, temperature=TEMPERATURE).to(device) for _ in range(2))
        self.reference.eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(p for p in self.target.parameters() if p.requires_grad)
        self.images = torch.randn(batch, *self.target.preprocessing.input_size, device=device)
        self.tokens = torch.randint(1, 49000, (batch, 77), device=device)
        self.ids = torch.arange(batch, device=device)
        self.steerer = Steerer(KL(temperature=TEMPERATURE, epsilon=1e-14), memory=DualMemory(2 * batch, gamma=RATE))

    def parts(self, device: torch.device) -> dict[str, Spent]:
        """Runs the step; a cached reference skips the second part."""
        made: list[Pairs] = []
        spent = {PARTS[0]: harness.clock(lambda: made.append(self.target.encode(self.images, self.tokens)), device)}
        spent[PARTS[1]] = harness.clock(lambda: made.append(_look(self.reference, self.images, self.tokens)), device)
        features, known = made
        sides = [side.detach().requires_grad_() for side in features[:2]]
        spent[PARTS[2]] = harness.clock(lambda: self._loss(sides, known), device)
        gradients = [side.grad for side in sides]
        spent[PARTS[3]] = harness.clock(lambda: torch.autograd.backward(features[:2], gradients), device)
        spent[PARTS[4]] = harness.clock(self.optimizer.step, device)
        self.optimizer.zero_grad(set_to_none=True)
        return spent

    def _loss(self, sides: list[Tensor], known: Pairs) -> None:
        self.steerer(Pairs(sides[0], sides[1]), known, ids=self.ids).loss.backward()


@torch.no_grad()
def _look(towers: Towers, images: Tensor, tokens: Tensor) -> Pairs:
    return towers.encode(images, tokens)


def derived(step: dict[str, float], batch: int, sizes: list[int], device: torch.device) -> list[list[str]]:
    """Shares at batches whose towers were not run: they are taken to cost as much a pair as in the measured step."""
    rows = [["batch", "loss, s (measured)", "towers and AdamW, s (derived)", "share of a step, cached reference"]]
    towers = (step[PARTS[0]] + step[PARTS[3]]) / batch
    for size in sizes:
        sides = harness.features(size, 512, device=device.type)
        sides[0].requires_grad_()
        sides[1].requires_grad_()
        target, known = harness.pairs(sides)
        memory = DualMemory(2 * size, gamma=RATE)
        steerer, ids = (
            Steerer(KL(temperature=TEMPERATURE, epsilon=1e-14), memory=memory),
            torch.arange(size, device=device),
        )

        def work(steerer=steerer, target=target, known=known, ids=ids) -> None:
            steerer(target, known, ids=ids).loss.backward()

        loss = harness.median(harness.seconds(harness.race({"": work}, 3, device)[""], device))
        rest = towers * size + step[PARTS[4]]
        rows.append([str(size), f"{loss:.3f}", f"{rest:.0f}", f"{loss / (loss + rest):.3%}"])
    return rows


def main() -> None:
    parser = harness.arguments("step", __doc__, rounds=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[64], help="pairs of a step")
    parser.add_argument("--derived", type=int, nargs="*", default=[1024, 4096], help="batches to derive shares for")
    options = parser.parse_args()
    device = harness.prepare_process(options)
    report = Report("step", device)
    report.notes = [f"{ARCHITECTURE}, float32, AdamW, medians of {options.rounds} steps after a first one."]
    batch, medians = 0, {}
    for batch in options.batches:
        step = Step(batch, device)
        step.parts(device)
        rounds = [step.parts(device) for _ in range(options.rounds)]
        medians = {part: harness.median(harness.seconds([each[part] for each in rounds], device)) for part in PARTS}
        report.figures[str(batch)] = rounds
        report.table(f"batch {batch}", _shares(medians))
    if options.derived:
        title = f"Derived from the step of {batch}, whose towers' cost a pair is taken to hold for larger batches"
        report.table(title, derived(medians, batch, options.derived, device))
    report.save(options.out)


def _shares(medians: dict[str, float]) -> list[list[str]]:
    online = sum(medians.values())
    cached = online - medians[PARTS[1]]
    rows = [["part", "seconds", "share, cached reference", "share, online reference"]]
    for part, seconds in medians.items():
        share = "" if part == PARTS[1] else f"{seconds / cached:.3%}"
        rows.append([part, f"{seconds:.4f}", share, f"{seconds / online:.3%}"])
    return rows


if __name__ == "__main__":
    harness.run(main)
