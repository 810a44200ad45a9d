"""A steered loop with Accelerate is the loop by hand: accumulated, on two processes, saved and resumed."""

from typing import Any

import pytest
import torch
from loops import on_two_ranks, weights_of
from points import BATCH, RULE, Points, by_hand, epoch_batches, losses, network, table
from torch import nn

from steering import DualMemory, Losses, Steerer, UserError
from steering.references import LossTable

pytest.importorskip("accelerate", minversion="1")

from accelerate import Accelerator

from steering.adapters.accelerate import Steering

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of hosts


def accelerated(steps: int, reference: Any, steerer: Steerer, ranks: int = 1, epochs: int = 1, **folders: Any) -> Any:
    """Weights of the target, and the logged losses of its micro-batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
    model, loader = network(0), torch.utils.data.DataLoader(Points(), BATCH // steps // ranks)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.5), loader)
    steering, logged, made = Steering(accelerator, steerer, losses, reference), [], 0
    if "load" in folders:
        accelerator.load_state(folders["load"])
    for _ in range(epochs):
        for _, loss in steering.batches(model, loader):
            with accelerator.accumulate(model):
                value = loss()
                accelerator.backward(value)
                made += accelerator.sync_gradients
                optimizer.step()
                optimizer.zero_grad()
            mean: Any = accelerator.reduce(value.detach(), reduction="mean")
            logged.append(float(mean))
    if "save" in folders:
        accelerator.save_state(folders["save"])
    assert made == 2 * epochs
    return weights_of(accelerator.unwrap_model(model)), logged


@pytest.mark.parametrize("steps", [1, 4])
def test_an_accelerated_loop_is_the_loop_by_hand_with_windows_that_are_not_full(steps):
    expected, weighted = by_hand(Steerer(RULE))
    for reference in (network(1), table(), lambda batch: losses(network(1), batch)):
        result, logged = accelerated(steps, reference, Steerer(RULE))
        tolerance = 1e-5 if isinstance(reference, LossTable) else 1e-12  # which keeps float32
        assert torch.allclose(result, expected, rtol=tolerance, atol=tolerance)
        means = [sum(logged[:steps]) / steps, sum(logged[steps:]) / steps]
        assert means == pytest.approx(weighted, rel=1e-5) and min(logged) >= 0


def on_a_rank() -> torch.Tensor:
    result, _ = accelerated(2, network(1), Steerer(RULE), ranks=2)
    assert torch.distributed.get_world_size() == 2
    return result


def test_two_processes_with_accumulation_are_the_loop_by_hand(tmp_path):
    expected, _ = by_hand(Steerer(RULE))
    for result in on_two_ranks(on_a_rank, tmp_path):
        assert torch.allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_micro_batches_that_are_weighed_alone_learn_something_else():
    """The trap: what one gets who calls the steerer inside accumulate."""
    model, alone = network(0), Steerer(RULE)
    for batch in torch.utils.data.DataLoader(Points(), BATCH // 4):
        (alone(losses(model, batch), losses(network(1), batch)).loss / 4).backward()
        if int(batch["index"][-1]) == BATCH - 1:
            break
    torch.optim.SGD(model.parameters(), 0.5).step()
    first = network(0)
    Steerer(RULE)(losses(first, epoch_batches()[0]), losses(network(1), epoch_batches()[0]).detach()).loss.backward()
    torch.optim.SGD(first.parameters(), 0.5).step()
    assert not torch.allclose(weights_of(model), weights_of(first), rtol=1e-2)


def test_what_the_steerer_remembers_is_saved_and_loaded(tmp_path):
    make = lambda: Steerer("kl(temperature=1)", reference_scale="auto", memory=DualMemory(gamma=0.5))  # noqa: E731
    expected, _ = accelerated(2, network(1), make(), epochs=2)
    accelerated(2, network(1), make(), save=str(tmp_path))
    result, _ = accelerated(2, network(1), make(), load=str(tmp_path))
    assert torch.equal(result, expected)


def test_losses_may_be_of_tokens_in_rows():
    def rows(model: nn.Module, batch: dict[str, Any]) -> Losses:
        errors = model(batch["x"]).square()
        return Losses(errors.flatten(), rows=torch.arange(len(errors)).repeat_interleave(errors.shape[1]))

    results = []
    for steps in (1, 4):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
        model, loader = network(0), torch.utils.data.DataLoader(Points(), BATCH // steps)
        steering = Steering(accelerator, Steerer(RULE), rows, network(1))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for _, loss in steering.batches(model, accelerator.prepare(loader)):
            with accelerator.accumulate(model):
                accelerator.backward(loss())
                if accelerator.sync_gradients:
                    optimizer.step()
                    optimizer.zero_grad()
        results.append(weights_of(model))
    assert torch.allclose(results[0], results[1], rtol=1e-12)


@pytest.mark.parametrize(
    "reference, message",
    [
        (None, r"steering needs a reference: reference=..., or a column reference_loss in every batch"),
        (LossTable([0.0, 1.0]), r"reference losses of ids 2, 3, 4 and 27 more are not there"),
        (3, r"a reference is a function of a batch, a module, an array or file of losses by id"),
    ],
)
def test_a_mistake_is_one_line(reference, message):
    with pytest.raises(UserError, match=message) as error:
        accelerated(1, reference, Steerer(RULE))
    assert "\n" not in str(error.value)


def test_what_is_no_accelerator_is_said():
    with pytest.raises(UserError, match="steering needs an Accelerator of accelerate 1 or newer, got object"):
        Steering(object(), Steerer(RULE), losses)  # type: ignore[arg-type]
