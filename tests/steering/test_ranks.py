"""Several processes steer as one: the same gradient, memory and moments, however the batch is split.

Every scenario runs on the whole batch in one process and on its parts in two and in four (gloo); the gradients are
averaged as DistributedDataParallel does. All in double precision, to 1e-12.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, Pairs, Steerer, Uniform, dual_memory
from steering.distributed import all_reduce_sum, rank, world_size
from steering.rules import GlobalContrastive, Individual, InfoNCE

pytestmark = pytest.mark.slow

BATCH, STEPS = 8, 3
RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(temperature=0.5, epsilon=0.1),
    KL(rho=20),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=20),
    Individual(start=0.5, radius=1.0),
]


def batches():
    """Every step's inputs, target values, reference losses, ids and mask, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        x, y = (torch.randn(BATCH, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        reference = torch.rand(BATCH, 5, generator=generator, dtype=torch.float64)
        ids = torch.randperm(2 * BATCH, generator=generator)[:BATCH]
        mask = torch.rand(BATCH, 5, generator=generator) < 0.7
        mask[: BATCH // 2, 0] = True  # the first rank has more entries that count
        mask[-3:, 0] = False
        mask[1] = False  # a row of padding, on the first rank
        yield x, y, reference, ids, mask


def losses(kind: str, model, x, y, reference, mask):
    """What the Steerer is given: losses, reference losses and mask."""
    if kind in ("pairs", "tempered"):
        reference = Pairs(normalize(reference, dim=-1), normalize(reference + y, dim=-1))
        scale = 3 + model.mean().exp() if kind == "tempered" else 1.0
        return Pairs(normalize(x @ model, dim=-1), normalize(y @ model, dim=-1), scale), reference, None
    errors = (x @ model - y).square()
    if kind == "rows":
        return errors, reference, mask
    return errors.mean(-1), reference.mean(-1), mask[:, 0] if kind == "masked" else None


def train(kind: str, rule, gamma: float) -> dict:
    """A few steps of gradient descent on this process's share of the batches."""
    model = torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5).requires_grad_()
    memory = DualMemory(1 if kind in ("samples", "masked") else 4 * BATCH, gamma=gamma)
    steerer = Steerer(rule, reference_scale="auto", population=50, memory=memory)
    share = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    gradients, scales, effective, alive = [], [], [], []
    for x, y, reference, ids, mask in batches():
        given, known, counts = losses(kind, model, x[share], y[share], reference[share], mask[share])
        steered = steerer(given, known, ids=ids[share], mask=counts)
        (gradient,) = torch.autograd.grad(steered.loss, model)
        gradient = all_reduce_sum(gradient) / world_size()
        model = (model.detach() - 0.1 * gradient).requires_grad_()
        gradients.append(gradient)
        scales.append(steered.scale)
        effective.append(all_reduce_sum(steered.effective.mean()) / world_size())
        alive.append(all_reduce_sum(steerer.alive) / world_size())
    table = torch.zeros(0) if memory.table is None else memory.table.nan_to_num(-99)
    return {
        "gradients": torch.stack(gradients),
        "scales": torch.stack(scales),
        "effective": torch.stack(effective),
        "alive": torch.stack(alive),
        "table": table,
        "moments": steerer.moments.values,
    }


def scenarios() -> dict[str, tuple]:
    """Kind of loss, rule and gamma of the memory, by name."""
    found = {}
    for kind in ("samples", "masked", "rows", "pairs"):
        found |= {f"{kind}-{rule!r}": (kind, rule, 1.0) for rule in RULES}
        found |= {f"{kind}-{rule!r}-remembered": (kind, rule, 0.5) for rule in RULES}
    for rule in (InfoNCE(), GlobalContrastive(radius=2.0, epsilon=1e-3)):
        found |= {f"tempered-{rule!r}-{gamma}": ("tempered", rule, gamma) for gamma in (1.0, 0.5)}
    return found


def everything() -> dict[str, dict]:
    return {name: train(*scenario) for name, scenario in scenarios().items()}


def one_rank(place: int, folder: str, ranks: int, near: int) -> None:
    torch.set_num_threads(1)
    dual_memory.NEAR = near
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=place, world_size=ranks)
    torch.save(everything(), f"{folder}/rank{place}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return everything()


@pytest.fixture(scope="module", params=[(2, dual_memory.NEAR), (4, 100)], ids=["2 ranks", "4 ranks, memory shared"])
def together(request, tmp_path_factory) -> list[dict]:
    """What every rank found; with a table each, or one for all where it is larger than 100 bytes."""
    ranks, near = request.param
    folder = str(tmp_path_factory.mktemp("ranks"))
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setattr(sys, "path", [root, *sys.path])  # so that the ranks find this module
        spawn(one_rank, (folder, ranks, near), nprocs=ranks)
    return [torch.load(f"{folder}/rank{place}.pt") for place in range(ranks)]


@pytest.mark.parametrize("name", scenarios())
def test_several_ranks_steer_as_one(alone, together, name):
    for figure, wanted in alone[name].items():
        assert wanted.isfinite().all(), figure
        for found in together:
            assert torch.allclose(found[name][figure], wanted, rtol=1e-12, atol=1e-12), figure


def test_the_scenarios_use_their_memory_and_their_masks(alone):
    for name, scenario in scenarios().items():
        remembers = scenario[2] < 1 or isinstance(scenario[1], Individual)
        assert (len(alone[name]["table"]) > 0) == remembers, name
    for kind in ("samples", "rows", "pairs"):
        fresh, remembered = (alone[f"{kind}-{KL(temperature=0.5)!r}{end}"] for end in ("", "-remembered"))
        assert not torch.allclose(fresh["gradients"][1:], remembered["gradients"][1:])
    plain, masked = (alone[f"{kind}-{Uniform()!r}"]["gradients"] for kind in ("samples", "masked"))
    assert not torch.allclose(plain, masked)
