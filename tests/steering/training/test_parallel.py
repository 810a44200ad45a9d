"""Two and four processes train as one, whole copies or parts of the target, for every loss; in double precision.

The task's target is made of blocks, as transformers are, with a temperature that is learned, and gives Pairs; every
method of the paper's main table is an arm, most of them with and without distillation.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from steering import Pairs, UserError
from steering.distributed import all_gather, rank, world_size
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.training import checkpoint
from steering.training.loader import ShuffledLoader
from steering.training.loop import evaluate, run
from steering.training.step import Training

pytestmark = pytest.mark.slow

SAMPLES, WIDTH, STEPS = 64, 6, 3
ARMS = {
    "openclip": {"rule": "info_nce()", "subtract": False},
    "fastclip_v0": {"rule": "global_contrastive(scaled=False)", "subtract": False, "gamma": 0.6},
    "fastclip_v1": {"rule": "kl(temperature=0.2, epsilon=1e-4)", "subtract": False, "gamma": 0.6},
    "fastclip_v2": {"rule": "individual(start=0.2, radius=1)", "subtract": False, "gamma": 0.6},
    "fastclip_v3": {"rule": "global_contrastive(radius=2)", "subtract": False, "gamma": 0.6},
    "drrho_clip": {"rule": "kl(temperature=0.2, epsilon=1e-4)", "gamma": 0.6},
    "drrho_learned": {"rule": "global_contrastive(radius=2)", "gamma": 0.6, "reference_scale": "auto"},
    "drrho_individual": {"rule": "individual(start=0.2, radius=1)", "gamma": 0.6},
    "kl_rho": {"rule": "kl(rho=20)"},
    "cvar": {"rule": "cvar(alpha=0.3)"},
    "chi_square": {"rule": "chi_square(rho=20)"},
}
DISTILLED = {
    f"{name}_distilled": ARMS[name] | {"distill": 0.7}
    for name in ("openclip", "fastclip_v2", "fastclip_v3", "drrho_clip", "drrho_learned", "cvar")
}


class Blocks(nn.Module):
    """Two encoders of a few residual blocks each, in double precision."""

    def __init__(self, normed: bool = False):
        super().__init__()
        self.sides = nn.ModuleList(nn.ModuleList(self._block() for _ in range(2)) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.idle = nn.Linear(2, 2)  # no part of any loss
        self.norm = nn.BatchNorm1d(WIDTH) if normed else nn.Identity()
        self.double()

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def forward(self, *inputs: torch.Tensor) -> Pairs:
        features = [self.encode(x, side) for side, x in enumerate(inputs)]
        return Pairs(features[0], features[1], self.scale.exp())

    def encode(self, x: torch.Tensor, side: int) -> torch.Tensor:
        x = self.norm(x)
        for block in self.sides[side]:  # type: ignore[union-attr]
            x = x + block(x)
        return normalize(x, dim=-1)


@dataclass(frozen=True)
class Contrast:
    """Noisy copies of random vectors.

    Args:
        other: another reference.
        normed: the target has batch norm.
        methods: the losses are made of what the model's methods give, and not of its forward pass.
    """

    other: bool = False
    normed: bool = False
    methods: bool = False

    @property
    def size(self) -> int:
        return SAMPLES

    @property
    def rows(self) -> int:
        return 2 * SAMPLES

    metrics: ClassVar[Mapping[str, Metric]] = {"scale": Metric(label="scale")}
    recipe: ClassVar[Recipe] = Recipe(
        steps=STEPS,
        batch=16,
        optimizer="sgd",
        learning_rate=0.1,
        clip_norm=1.0,
        weight_decay=0.01,
        arms={},
        baseline="",
    )

    def seeded(self, seed: int) -> "Contrast":
        return self

    def with_teacher(self) -> "Contrast":
        return replace(self, other=True)

    def target(self) -> Blocks:
        return Blocks(self.normed)

    def reference(self) -> Blocks:
        with torch.random.fork_rng():
            torch.manual_seed(5 + self.other)
            return Blocks()

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(self._load, size=SAMPLES, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        if not self.methods:
            return Losses(model(batch["x"], batch["y"]))
        methods: Any = model
        return Losses(Pairs(methods.encode(batch["x"], 0), methods.encode(batch["y"], 1), methods.scale.exp()))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"scale": float(sum(p.sum() for p in model.parameters()))}

    def _load(self, ids: torch.Tensor, chance: torch.Generator) -> Batch:
        data = torch.Generator().manual_seed(1)
        x, noise = (torch.randn(SAMPLES, WIDTH, generator=data, dtype=torch.float64) for _ in range(2))
        return Batch(ids, {"x": x[ids], "y": (x + 0.5 * noise)[ids]})


def begun(arm: Mapping, task: Any, **recipe) -> Training:
    settings = task.recipe.model_copy(update=recipe)
    return Training(task, Arm(**arm), settings, reference=ReferenceLosses(task), seed=0)


def trained(arm: Mapping, path: Path | None = None, methods: bool = False, **recipe) -> dict:
    """What one arm comes to, step by step, and its checkpoint's contents."""
    training = begun(arm, Contrast(methods=methods), **recipe)
    if path is not None:
        run(training, path, record=lambda _: None)
        return {"evaluation": evaluate(training.task, training.result), "model": training.result.state_dict()}
    records = [training.step() for _ in range(STEPS)]
    for record in records:
        del record["cpu_seconds"]
    return {
        "records": records,
        "model": training.result.state_dict(),
        "evaluation": evaluate(training.task, training.result),
    }


def cases() -> dict[str, dict]:
    """Arms and recipes that are tried."""
    results = {name: {"arm": arm} for name, arm in {**ARMS, **DISTILLED}.items()}
    for name in ("fastclip_v3_distilled", "drrho_clip", "fastclip_v2"):
        results[f"{name} in parts"] = {"arm": {**ARMS, **DISTILLED}[name], "micro_batch": 2}
    for name in ("openclip", "drrho_learned_distilled", "cvar"):
        results[f"{name} sharded"] = {"arm": {**ARMS, **DISTILLED}[name], "parallel": "fsdp"}
    results["openclip by methods"] = {"arm": ARMS["openclip"], "methods": True}
    results["drrho_clip by methods in parts"] = {"arm": ARMS["drrho_clip"], "methods": True, "micro_batch": 2}
    results["drrho_clip sharded in parts"] = {"arm": ARMS["drrho_clip"], "parallel": "fsdp", "micro_batch": 2}
    return results


ADAM: dict[str, Any] = {
    "steps": 4,
    "optimizer": "adamw",
    "parallel": "fsdp",
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
}


def half(folder: str | Path, name: str) -> Path:
    """A copy of what two ranks with a shard each had saved after half of their steps."""
    path = Path(folder) / f"{name}{rank()}" / "c.pt"
    path.parent.mkdir()
    return Path(shutil.copy(Path(folder) / "sharded-00000002.pt", path))


def one_rank(index: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet{ranks}", timedelta(minutes=2)
    torch.distributed.init_process_group("gloo", meet, rank=index, world_size=ranks, timeout=patience)
    results: dict[str, Any] = {name: trained(**case) for name, case in cases().items()}
    if ranks == 2:
        results["sharded"] = trained(ARMS["openclip"], Path(folder) / "sharded.pt", **ADAM)
        try:
            trained(ARMS["openclip"], parallel="fsdp", ema=0.9)
        except UserError as error:
            results["refused"] = str(error)
        results["means"] = {kind: running_means(parallel=kind) for kind in ("ddp", "fsdp")}
        checkpoint.Saver.age = lambda self: 1e9 * rank()  # type: ignore[method-assign]
        results["late"] = trained(ARMS["openclip"], Path(folder) / "late.pt", steps=3, checkpoint_minutes=1)
    else:
        for kind in ("fsdp", "ddp"):
            settings: dict[str, Any] = ADAM | {"parallel": kind}
            results[f"{kind} continued"] = trained(ARMS["openclip"], half(folder, kind), **settings)
    if rank() == world_size() - 1:
        torch.save(results, Path(folder) / f"{ranks}.pt")
    torch.distributed.destroy_process_group()


def running_means(**recipe) -> torch.Tensor:
    """Every rank's running means in what is evaluated, ``[ranks, width]``."""
    training = begun(ARMS["openclip"], Contrast(normed=True), micro_batch=4, **recipe)
    for _ in range(2):
        training.step()
    return all_gather(training.result.get_buffer("norm.running_mean")[None])


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory):
    """What two and four ranks come to, by their number, and where their files are."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[__name__.count(".")])  # so that the ranks find this module
        for ranks in (2, 4):
            spawn(one_rank, (ranks, str(folder)), nprocs=ranks)
    return {ranks: torch.load(folder / f"{ranks}.pt") for ranks in (2, 4)}, folder


@pytest.mark.parametrize("name", cases())
def test_several_ranks_train_as_one_step_by_step(name, by_ranks):
    alone = trained(cases()[name]["arm"])  # with the whole batch at once
    assert alone["records"][0]["loss"] != alone["records"][-1]["loss"], "nothing was learnt"
    for ranks, results in by_ranks[0].items():
        ranked = results[name]
        for step, (record, expected) in enumerate(zip(ranked["records"], alone["records"], strict=True)):
            for key, value in expected.items():
                if value is None or isinstance(value, dict):
                    assert record[key] == value
                    continue
                assert record[key] == pytest.approx(value, rel=1e-9, abs=1e-10), f"{ranks} ranks, step {step}: {key}"
        torch.testing.assert_close(ranked["model"], alone["model"], rtol=1e-10, atol=1e-10)
        assert ranked["evaluation"] == pytest.approx(alone["evaluation"])


@pytest.mark.parametrize("how", ["fsdp", "ddp", "one process"])
def test_what_two_ranks_saved_goes_on_on_four_or_one_whole_or_sharded(by_ranks, how):
    results, folder = by_ranks
    expected = results[2]["sharded"]
    torch.testing.assert_close(checkpoint.load(folder / "sharded.pt")["model"], expected["model"], rtol=0, atol=0)
    if how == "one process":
        continued = trained(ARMS["openclip"], half(folder, "alone"), **ADAM)
    else:
        continued = results[4][f"{how} continued"]
    torch.testing.assert_close(continued["model"], expected["model"], rtol=1e-10, atol=1e-10)
    assert checkpoint.load(folder / "sharded-00000002.pt")["model"].keys() == expected["model"].keys()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_ranks_evaluate_one_model_with_the_running_means_of_the_first(by_ranks, kind):
    means = by_ranks[0][2]["means"][kind]
    assert means[0].abs().min() > 0 and torch.equal(means[0], means[1])


def test_the_clock_of_the_first_rank_says_when_a_checkpoint_is_due(by_ranks):
    results, folder = by_ranks
    assert results[2]["late"]["evaluation"] and checkpoint.load(folder / "late.pt")["done"] == 3


def test_a_moving_average_of_a_sharded_target_is_refused(by_ranks):
    assert by_ranks[0][2]["refused"] == "a moving average of weights (recipe.ema) needs recipe.parallel=ddp, got fsdp"
