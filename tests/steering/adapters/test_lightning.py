"""A steered LightningModule is the loop by hand: accumulated by window, in bf16, on two processes, resumed."""

import copy
import os
import tempfile
from typing import Any

import pytest
import torch
from loops import on_two_ranks, weights_of
from points import BATCH, RULE, Points, by_hand, epoch_batches, losses, network, table
from torch import nn

from steering import DualMemory, Pairs, Steerer, UserError

pytest.importorskip("lightning", minversion="2.6")

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data.distributed import DistributedSampler

from steering.adapters.lightning import MicroBatches, Steering

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of hosts


class Model(LightningModule):
    """What a user writes: the network, the optimizer, and one line of steering."""

    def __init__(self, steerer: Steerer, reference: Any, net: nn.Module | None = None):
        super().__init__()
        self.net = net or network(0)
        self.steering = Steering(steerer, losses, reference)
        self.logged: list[float] = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batches, index):
        loss = self.steering.loss(self, batches)
        self.log("loss", loss, batch_size=BATCH)
        self.logged.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.5)


def trained(model: Model, size: int = BATCH, ranks: int = 1, resume: str | None = None, **options: Any) -> Trainer:
    rank = int(os.environ["RANK"]) if ranks > 1 else 0
    order = DistributedSampler(Points(), num_replicas=ranks, rank=rank, shuffle=False)  # Lightning's own would shuffle
    loader = torch.utils.data.DataLoader(Points(), BATCH // ranks, sampler=order, collate_fn=MicroBatches(size))
    callbacks = options.pop("callbacks", [model.steering.callback()])
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(model, loader, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("size", [BATCH, 8, 5])
def test_a_module_is_the_loop_by_hand_also_with_accumulation_by_window(size):
    expected, weighted = by_hand(Steerer(RULE))
    for reference in (network(1), table()):
        model = Model(Steerer(RULE), reference)
        trained(model, size)
        tolerance = 1e-5 if reference is not None and not isinstance(reference, nn.Module) else 1e-12
        assert torch.allclose(weights_of(model), expected, rtol=tolerance, atol=tolerance)
        assert model.logged == pytest.approx(weighted, rel=1e-5) and min(model.logged) >= 0


def on_a_rank() -> torch.Tensor:
    os.environ["NODE_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Steerer(RULE), network(1))
        trained(model, 8, ranks=2, default_root_dir=folder)
        assert torch.distributed.get_world_size() == 2
        return weights_of(model)


def test_two_processes_with_accumulation_by_window_are_the_loop_by_hand(tmp_path):
    expected, _ = by_hand(Steerer(RULE))
    for result in on_two_ranks(on_a_rank, tmp_path):
        assert torch.allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_mixed_precision_is_close_to_double():
    expected, _ = by_hand(Steerer("kl(temperature=1)"))
    model = Model(Steerer("kl(temperature=1)"), network(1).float(), network(0).float())
    model.steering.losses = lambda net, batch: losses(net, {**batch, "x": batch["x"].float()})
    trained(model, 8, precision="bf16-mixed")
    assert torch.allclose(weights_of(model).double(), expected, atol=2e-2)
    assert model.net[0].weight.dtype == torch.float32  # type: ignore[union-attr]


def test_a_resumed_module_is_one_that_was_never_stopped(tmp_path):
    make = lambda: Steerer("kl(temperature=1)", reference_scale="auto", memory=DualMemory(gamma=0.5))  # noqa: E731
    uninterrupted, first, second = (Model(make(), network(1)) for _ in range(3))
    trained(uninterrupted, 8, max_epochs=2)
    trained(first, 8).save_checkpoint(tmp_path / "half.ckpt")
    trained(second, 8, max_epochs=2, resume=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights_of(uninterrupted), weights_of(second))
    assert second.steering.steerer.variance.values is not None
    assert "reference" not in "".join(torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"])


def test_running_means_move_once_a_micro_batch():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    plain, steered = (Model(Steerer("uniform"), network(1), net_) for net_ in (net, copy.deepcopy(net)))
    plain.steering.loss = lambda model, batches: losses(model, _joined(batches)).mean()  # type: ignore[method-assign]
    for model in (plain, steered):
        trained(model, BATCH, max_steps=1)
    assert torch.equal(plain.net[1].running_mean, steered.net[1].running_mean)  # type: ignore[union-attr]
    parts = Model(Steerer("uniform"), network(1), copy.deepcopy(net))
    trained(parts, 8, max_steps=1)
    assert parts.net[1].num_batches_tracked == net[1].num_batches_tracked + 4  # type: ignore[union-attr]


def _joined(batches: list[dict]) -> dict:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_pairs_are_weighed_over_the_window():
    def features(net: nn.Module, batch: dict[str, Any]) -> Pairs:
        left = nn.functional.normalize(net(batch["x"]), dim=-1)
        right = nn.functional.normalize(net(batch["x"].flip(-1)), dim=-1)
        return Pairs(left, right)

    results = []
    for size in (BATCH, 8):
        model = Model(Steerer("kl(temperature=0.5)"), network(1))
        model.steering.losses = features
        trained(model, size, max_steps=1)
        results.append(weights_of(model))
    assert torch.allclose(results[0], results[1], rtol=1e-10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accumulate_grad_batches": 2}, r"steering weighs all micro-batches of a step together: Trainer\(callbacks="),
        ({"callbacks": []}, r"Trainer\(callbacks=\[steering.callback\(\)\]\) with accumulate_grad_batches=1"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        trained(Model(Steerer(RULE), network(1)), **options)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"micro-batches are a list, as MicroBatches\(8\) collates it, got dict"):
        Model(Steerer(RULE), network(1)).steering.loss(Model(Steerer(RULE), None), epoch_batches()[0])  # type: ignore[arg-type]
