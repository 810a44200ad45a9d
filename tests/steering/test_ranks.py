"""Several processes steer as one: the same gradient, memory and figures, however unevenly the batch is split.

Every scenario runs on the whole batch in one process and on its parts in two and in four (gloo); the gradients are
averaged as DistributedDataParallel does. All in double precision, to 1e-12.
"""

import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, GroupWeights, Pairs, Steerer, Uniform, UserError, dual_memory
from steering.contrastive.pairs import leaves_of, with_leaves
from steering.distillation import distil
from steering.distributed import all_reduce_sum, rank, world_size
from steering.errors import RunError
from steering.rules import GlobalContrastive, Individual, InfoNCE

pytestmark = pytest.mark.slow

BATCH, STEPS = 8, 3
BASED = ", base weights"  # end of the kinds that have them
SPLITS = {1: [0, 8], 2: [0, 3, 8], 4: [0, 5, 5, 6, 8]}  # uneven, and one rank of four has nothing
RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(temperature=0.5, epsilon=0.1),
    KL(rho=2),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=2),
    Individual(start=0.5, radius=1.0),
]


def batches():
    """Every step's inputs, target values, reference losses, ids, mask and groups, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(STEPS):
        x, y = (torch.randn(BATCH, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        reference = torch.rand(BATCH, 5, generator=generator, dtype=torch.float64)
        ids = torch.randperm(2 * BATCH, generator=generator)[:BATCH]
        mask = torch.rand(BATCH, 5, generator=generator) < 0.7
        mask[: BATCH // 2, 0] = True  # the first rank has more entries that count
        mask[-3:, 0] = False
        mask[1] = False  # a row of padding, on the first rank
        groups = torch.tensor([0, 2, 0, 2, 2, 0, 1, 1])  # the first ranks have no sample of group 1
        yield x, y, reference, ids, mask, groups


def share(kind: str) -> slice:
    """This process's part of a batch; of pairs everyone has as many."""
    if kind.removesuffix(BASED) in ("pairs", "tempered"):
        return slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    return slice(*SPLITS[world_size()][rank() : rank() + 2])


def batch_of(kind: str, model, x, y, reference, ids, mask, groups):
    """What the Steerer is given: losses, reference losses and options."""
    if kind.endswith(BASED):
        losses, values, options = batch_of(kind.removesuffix(BASED), model, x, y, reference, ids, mask, groups)
        return losses, values, options | {"base": 0.5 * (ids % 4)}  # every fourth sample weighs nothing
    if kind in ("pairs", "tempered"):
        reference = Pairs(normalize(reference, dim=-1), normalize(reference + y, dim=-1))
        scale = 3 + model.mean().exp() if kind == "tempered" else 1.0
        return Pairs(normalize(x @ model, dim=-1), normalize(y @ model, dim=-1), scale), reference, {"ids": ids}
    errors = (x @ model - y).square()
    if kind in ("rows", "batch"):
        return errors, reference, {"ids": ids, "mask": mask}
    if kind in ("packed", "packed batch"):
        rows = torch.arange(len(x))[:, None].expand(mask.shape)[mask]
        return errors[mask], reference[mask], {"ids": ids, "rows": rows}
    options = {"masked": {"mask": mask[:, 0]}, "samples": {}}.get(kind, {"groups": groups})
    return errors.mean(-1), reference.mean(-1), options


def steerer_of(kind: str, rule, gamma: float) -> Steerer:
    kind = kind.removesuffix(BASED)
    single = ("samples", "masked", "batch", "packed batch", "centred")
    memory = DualMemory(1 if kind in single else 4 * BATCH, gamma=gamma)
    options = {
        "batch": {"over": "batch"},
        "packed batch": {"over": "batch", "average": "entries"},
        "packed": {"average": "entries"},
        "centred": {"grouping": "centre"},
        "grouped": {"grouping": "rows"},
        "group weights": {"average": GroupWeights()},
    }.get(kind, {})
    return Steerer(rule, reference_scale="auto", population=50, memory=memory, **options)


def train(kind: str, rule, gamma: float) -> dict:
    """A few steps of gradient descent on this process's share of the batches."""
    model = torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5).requires_grad_()
    steerer, own = steerer_of(kind, rule, gamma), share(kind)
    gradients, figures = [], []
    for step, batch in enumerate(batches()):
        losses, reference, options = batch_of(kind, model, *(part[own] for part in batch))
        if step < STEPS - 1:
            loss = steered = steerer(losses, reference, **options)
            (gradient,) = torch.autograd.grad(loss.loss, model)
        else:  # weights first, then a micro-batch for each half
            window = steerer.weigh(losses, reference, **options)
            steered, gradient = window.steered, torch.zeros_like(model)
            count = len(losses.left) if isinstance(losses, Pairs) else len(losses)
            for index in (slice(0, count // 2), slice(count // 2, count)):
                part = with_leaves(losses, [leaf[index] if leaf.dim() else leaf for leaf in leaves_of(losses)])
                gradient += torch.autograd.grad(window.loss(part, index), model, retain_graph=True)[0]
        gradient = all_reduce_sum(gradient) / world_size()
        model = (model.detach() - 0.1 * gradient).requires_grad_()
        gradients.append(gradient)
        figures.append([float(steered.scale), *(value or 0.0 for value in steered.figures().values())])
    table = steerer.memory.table
    return {
        "gradients": torch.stack(gradients),
        "figures": torch.tensor(figures, dtype=torch.float64),
        "table": torch.zeros(0) if table is None else table.nan_to_num(-99),
        "variance": steerer.variance.values,
    }


def scenarios() -> dict[str, tuple]:
    """Kind of loss, rule and gamma of the memory, by name."""
    result = {}
    for kind in ("samples", "masked", "rows", "pairs"):
        result |= {f"{kind}-{rule!r}": (kind, rule, 1.0) for rule in RULES}
        result |= {f"{kind}-{rule!r}-remembered": (kind, rule, 0.5) for rule in RULES}
    for kind in ("batch", "packed", "packed batch", "centred", "grouped", "group weights"):
        for rule in (KL(temperature=0.5), CVaR(alpha=0.3), ChiSquare(rho=2)):
            result[f"{kind}-{rule!r}"] = (kind, rule, 1.0)
        result[f"{kind}-remembered"] = (kind, KL(temperature=0.5), 0.5)
    for kind in ("samples", "rows", "batch", "packed", "packed batch", "grouped", "pairs"):
        for rule in (KL(temperature=0.5), KL(rho=2), CVaR(alpha=0.3)):
            result[f"{kind}{BASED}-{rule!r}"] = (f"{kind}{BASED}", rule, 1.0)
        result[f"{kind}{BASED}-remembered"] = (f"{kind}{BASED}", KL(temperature=0.5), 0.5)
    result[f"tempered{BASED}"] = (f"tempered{BASED}", GlobalContrastive(radius=2.0, epsilon=1e-3), 1.0)
    for rule in (InfoNCE(), GlobalContrastive(radius=2.0, epsilon=1e-3)):
        result |= {f"tempered-{rule!r}-{gamma}": ("tempered", rule, gamma) for gamma in (1.0, 0.5)}
    return result


def everything() -> dict[str, dict]:
    return {name: train(*scenario) for name, scenario in scenarios().items()}


def large() -> dict[str, torch.Tensor]:
    """Variances of more entries than are looked at, in rows and in one; a rank may have none, in another precision."""
    losses = torch.randn(70, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    part = slice(*[70 * end // 8 for end in SPLITS[world_size()][rank() : rank() + 2]])
    own = losses[part]
    own = own if len(own) else own.float()
    variances = {}
    for name, values in (("large rows", own), ("one large row", own.reshape(-1))):
        steerer = Steerer(KL(temperature=1.0), reference_scale="auto", population=1000)
        steerer(values, values.square())
        assert steerer.variance.values is not None
        variances[name] = steerer.variance.values
    return variances


def faults() -> dict[str, str]:
    """What every rank is told where the ranks do not fit together, or one of them makes a mistake."""
    first = rank() == 0
    pairs = Pairs(*(torch.eye(3 if first else 2) for _ in range(2)))
    remembering = DualMemory(4, gamma=0.5)
    calls = {
        "unlike pairs": lambda: Steerer(Uniform())(pairs),
        "unlike kinds": lambda: Steerer(Uniform())(torch.zeros(2) if first else torch.zeros(2, 2)),
        "a reference here alone": lambda: Steerer(Uniform())(torch.zeros(2), torch.zeros(2) if first else None),
        "a wrong mask here alone": lambda: Steerer(Uniform())(torch.zeros(2), mask=torch.ones(1 if first else 2)),
        "a wrong id here alone": lambda: Steerer(Uniform(), memory=remembering)(
            torch.zeros(1, 2), ids=[9 if first else 1]
        ),
        "losses of none here alone": lambda: Steerer(Uniform())(cast(Any, None if first else torch.zeros(2))),
        "features of none here alone": lambda: Steerer(Uniform())(
            Pairs(*(torch.zeros(3) if first else torch.zeros(3, 2) for _ in range(2)))
        ),
        "unlike precisions": lambda: Steerer(Uniform())(
            torch.zeros(2, dtype=torch.float64 if first else torch.float32)
        ),
        "a window of none here alone": lambda: Steerer(Uniform()).weigh(cast(Any, None if first else torch.zeros(2))),
        "a mask of answers here alone": lambda: distil(
            torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(3 if first else 2)
        ),
        "answers of none here alone": lambda: distil(torch.zeros(2, 3), torch.zeros(2, 4 if first else 3)),
        "nothing anywhere": lambda: Steerer(Uniform())(torch.zeros(0)),
    }
    messages = {}
    for name, call in calls.items():
        try:
            call()
        except (UserError, RunError) as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def one_rank(place: int, folder: str, ranks: int, near: int) -> None:
    torch.set_num_threads(1)
    dual_memory.NEAR = near
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=place, world_size=ranks)
    torch.save(everything() | {"faults": faults(), "large": large()}, f"{folder}/rank{place}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return everything()


@pytest.fixture(scope="module", params=[(2, dual_memory.NEAR), (4, 100)], ids=["2 ranks", "4 ranks, memory shared"])
def together(request, tmp_path_factory) -> list[dict]:
    """What every rank has; with a table each, or one for all where it is larger than 100 bytes."""
    ranks, near = request.param
    folder = str(tmp_path_factory.mktemp("ranks"))
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(__file__).parents[2])
        patch.setattr(sys, "path", [root, *sys.path])  # so that the ranks find this module
        spawn(one_rank, (folder, ranks, near), nprocs=ranks)
    return [torch.load(f"{folder}/rank{place}.pt") for place in range(ranks)]


@pytest.mark.parametrize("name", scenarios())
def test_several_ranks_steer_as_one(alone, together, name):
    for figure, expected in alone[name].items():
        assert expected.isfinite().all(), figure
        for results in together:
            assert torch.allclose(results[name][figure], expected, rtol=1e-12, atol=1e-12), figure


def test_variances_of_a_large_batch_are_those_of_one_process(together):
    for name, expected in large().items():
        for results in together:
            assert torch.allclose(results["large"][name], expected, rtol=1e-12), name


def test_ranks_that_do_not_fit_together_are_told_so_everywhere(together):
    sizes = ", ".join(["3", *["2"] * (len(together) - 1)])
    for number, results in enumerate(together):
        messages = results["faults"]
        assert f"UserError: all processes must hold as many pairs, got {sizes} by rank" in messages["unlike pairs"]
        assert "UserError: all processes give losses of one kind, got one row over all" in messages["unlike kinds"]
        assert "got with, without" in messages["a reference here alone"]
        assert "UserError: all processes give losses of one precision, got float64, fl" in messages["unlike precisions"]
        for name in ("losses of none", "features of none", "a window of none", "a mask of answers", "answers of none"):
            assert messages[f"{name} here alone"].startswith("Elsewhere" if number else "UserError"), name
        for name, words in (
            ("a wrong mask here alone", "the mask is"),
            ("a wrong id here alone", "id 9 does not"),
        ):
            elsewhere = "Elsewhere: another process of this run failed"
            assert messages[name].startswith(elsewhere if number else f"UserError: {words}"), messages[name]
        assert "and not empty" in messages["nothing anywhere"]


def test_the_scenarios_use_their_memory_and_their_masks(alone):
    for name, scenario in scenarios().items():
        remembers = scenario[2] < 1 or isinstance(scenario[1], Individual)
        assert (len(alone[name]["table"]) > 0) == remembers, name
    for kind in ("samples", "rows", "pairs"):
        fresh, remembered = (alone[f"{kind}-{KL(temperature=0.5)!r}{end}"] for end in ("", "-remembered"))
        assert not torch.allclose(fresh["gradients"][1:], remembered["gradients"][1:])
    plain, masked = (alone[f"{kind}-{Uniform()!r}"]["gradients"] for kind in ("samples", "masked"))
    assert not torch.allclose(plain, masked)
