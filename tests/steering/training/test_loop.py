"""The training loop: what two runs share, what a stop and a kill leave behind, and what equals what."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy

from steering import RunError, UserError, registry
from steering.distributed import rank, world_size
from steering.references.store import ReferenceLosses
from steering.settings import Arm
from steering.task import exchange
from steering.training import checkpoint, loop, seeds

ARMS = {
    "plain": {"subtract": False},
    "steered": {"rule": "kl(temperature=0.5)"},
    "memory": {"rule": "kl(rho=8)", "gamma": 0.5},
    "selector": {"selector": "uniform(keep=0.5)", "rule": "cvar(alpha=0.5)", "reference_scale": 1.0},
    "schedule": {"rule": "kl(temperature=0.5)", "gamma": 0.2, "gamma_schedule": "cosine_per_step"},
    "reference chooses": {"selector": "top_k(keep=0.5)", "rule": "chi_square(temperature=1.0)", "gamma": 0.9},
}


@dataclass(frozen=True)
class KeepAll:
    """A selector that changes nothing, so that scoring is all it does."""

    keep: float = 1.0
    uses_reference: bool = True

    def __call__(self, losses, reference, *, number, generator):
        return torch.arange(number)


@dataclass(frozen=True)
class Noting(KeepAll):
    """Keeps all, and notes what chance would have said."""

    noted: ClassVar[list[float]] = []

    def __call__(self, losses, reference, *, number, generator):
        self.noted.append(torch.rand((), generator=generator).item())
        return torch.arange(number)


def same(a, b) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        alike = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return alike and torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_time(figures: dict) -> dict:
    return {name: value for name, value in figures.items() if name != "cpu_seconds"}


def state(training: loop.Training) -> dict:
    """All that a checkpoint holds, apart from the clock, with the weights on every rank."""
    held = copy.deepcopy(training.state_dict() | {"model": training.model.state_dict()})
    return held | {"counters": without_time(held["counters"])}


def finish(training: loop.Training, path, stop_at: int | None = None) -> list[dict]:
    """Trains to the end, or stops after a step; gives the records."""
    records = []
    loop.run(
        training,
        path,
        record=lambda figures: records.append(without_time(figures)),
        stopped=lambda: training.done == stop_at,
    )
    return records


# ------------------------------------------------------------------------------------------ stop and resume


@pytest.mark.parametrize("arm, stop_at", [*((arm, 5) for arm in ARMS), ("memory", 1), ("memory", 8)])
def test_a_run_that_stops_and_resumes_is_the_same_to_the_bit(make_training, tmp_path, arm, stop_at):
    expected = finish(uninterrupted := make_training(**ARMS[arm], folder=tmp_path / "whole"), tmp_path / "whole.pt")
    records = finish(first := make_training(**ARMS[arm], folder=tmp_path / "parts"), tmp_path / "parts.pt", stop_at)
    assert first.done == stop_at
    second = make_training(**ARMS[arm], folder=tmp_path / "parts")
    torch.manual_seed(99)  # another process would have other generators
    records += finish(second, tmp_path / "parts.pt")
    assert records == expected and [r["step"] for r in expected if "loss" in r] == list(range(1, 13))
    assert same(state(second), state(uninterrupted))


@pytest.mark.parametrize("name", ["digits", "blobs", "diabetes"])
def test_every_small_task_resumes_to_the_bit(make_training, tmp_path, name):
    task = registry.build("tasks", name).seeded(1)
    settings = {"steps": 9, "evaluate_every": 4, "batch": 20}
    arm = {"rule": "kl(rho=8)", "gamma": 0.5, "selector": "boltzmann(keep=0.5)"}
    expected = finish(
        uninterrupted := make_training(task, 1, settings, tmp_path / "whole", **arm), tmp_path / "whole.pt"
    )
    records = finish(make_training(task, 1, settings, tmp_path / "parts", **arm), tmp_path / "parts.pt", 5)
    records += finish(second := make_training(task, 1, settings, tmp_path / "parts", **arm), tmp_path / "parts.pt")
    assert records == expected
    assert same(state(second), state(uninterrupted))


@pytest.mark.parametrize("step, saved", [(7, 4), (2, 0)])
def test_a_run_that_dies_between_two_checkpoints_repeats_the_steps_since_the_first(
    make_training, tmp_path, step, saved
):
    """Also the one before the first step, in which no optimiser has a state yet."""
    arm, recipe = ARMS["memory"], {"optimizer": "adamw", "weight_decay": 0.1}
    expected = finish(
        uninterrupted := make_training(recipe=recipe, **arm, folder=tmp_path / "whole"), tmp_path / "whole.pt"
    )

    def die(figures):
        if figures["step"] == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(make_training(recipe=recipe, **arm, folder=tmp_path / "parts"), tmp_path / "parts.pt", record=die)
    assert checkpoint.load(tmp_path / "parts.pt")["done"] == saved  # one every four steps
    second = make_training(recipe=recipe, **arm, folder=tmp_path / "parts")
    assert finish(second, tmp_path / "parts.pt") == [r for r in expected if r["step"] > saved]
    assert same(state(second), state(uninterrupted))


def test_a_finished_run_is_not_trained_again(make_training, tmp_path):
    finish(uninterrupted := make_training(), tmp_path / "c.pt")
    assert finish(again := make_training(), tmp_path / "c.pt") == []
    assert same(state(again), state(uninterrupted))


def test_a_stop_in_the_last_step_is_no_stop(make_training, tmp_path):
    assert loop.run(make_training(), tmp_path / "c.pt", record=lambda _: None, stopped=lambda: False)
    last = make_training()
    assert loop.run(last, tmp_path / "d.pt", record=lambda _: None, stopped=lambda: last.done == 12)


def test_a_memory_of_more_samples_is_refused(make_training, toy, tmp_path):
    finish(make_training(toy(duals=5), **ARMS["memory"]), tmp_path / "c.pt", 2)
    with pytest.raises(UserError, match=r"does not fit this arm .it is of duals 5, not 3"):
        finish(make_training(toy(duals=3), **ARMS["memory"]), tmp_path / "c.pt")


def test_a_checkpoint_of_another_model_is_refused_in_one_line(make_training, toy, tmp_path):
    finish(make_training(toy(noisy=False)), tmp_path / "c.pt", 2)
    with pytest.raises(UserError, match=r"does not fit this arm .*was the code changed") as caught:
        finish(make_training(toy()), tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_format_is_refused_but_its_model_is_read(make_training, toy, tmp_path):
    finish(training := make_training(), tmp_path / "c.pt", 2)
    old = training.state_dict()
    del old["format"]
    checkpoint.save(tmp_path / "c.pt", old)
    with pytest.raises(
        UserError, match=r"c\.pt has format 1, this version goes on from format 2: finish that run with"
    ):
        finish(make_training(), tmp_path / "c.pt")
    assert same(loop.trained(toy(), tmp_path / "c.pt").state_dict(), training.model.state_dict())


# --------------------------------------------------------------------------------------- what arms share


def test_arms_of_one_seed_start_from_the_same_weights_and_see_the_same_data(make_training):
    plain, steered = make_training(**ARMS["plain"]), make_training(**ARMS["memory"])
    assert same(plain.model.state_dict(), steered.model.state_dict())
    for training in (plain, steered):
        training.step()
    for _ in range(5):
        assert next(plain.stream).ids.tolist() == next(steered.stream).ids.tolist()


def test_a_selector_chooses_among_the_samples_the_other_arms_see(make_training):
    plain, choosing = make_training(**ARMS["plain"]), make_training(**ARMS["selector"])
    seen = [*next(plain.stream).ids.tolist(), *next(plain.stream).ids.tolist()]
    assert next(choosing.stream).ids.tolist() == seen


@pytest.mark.parametrize("selector", ["top_k(keep=0.5)", "boltzmann(keep=0.5)"])
def test_candidates_scored_in_parts_are_chosen_as_in_one_pass(make_training, toy, selector):
    """With a width that a matrix product sums in the same order whatever the number of samples, to the bit."""
    uninterrupted, parts = (
        make_training(toy(noisy=False), selector=selector, recipe={"micro_batch": n}) for n in (None, 3)
    )
    for _ in range(3):
        candidates = next(uninterrupted.stream)
        assert same(uninterrupted._select(candidates).ids, parts._select(candidates).ids)


def test_the_chance_of_a_selector_is_another_in_every_step_and_seed(make_training):
    for seed in (0, 1, 0):
        training = make_training(seed=seed, selector=f"{__name__}:Noting")
        training.step()
        training.step()
    assert len(set(Noting.noted[:4])) == 4 and Noting.noted[4:] == Noting.noted[:2]


def test_another_seed_has_other_weights_and_another_order(make_training):
    first, second = make_training(seed=0), make_training(seed=1)
    assert not same(first.model.state_dict(), second.model.state_dict())
    assert next(first.stream).ids.tolist() != next(second.stream).ids.tolist()


def test_more_candidates_than_samples_are_refused(make_training):
    with pytest.raises(UserError, match=r"top_k\(keep=0.1\) needs 80 candidates for a batch of 8, but there are 24"):
        make_training(selector="top_k(keep=0.1)")


# ---------------------------------------------------------------------------------------- leaving no trace


def test_an_evaluation_leaves_no_trace(make_training):
    training = make_training(**ARMS["memory"])
    for _ in range(3):
        training.step()
    before = state(training)
    first = loop.evaluate(training.task, training.result)
    assert training.model.training and same(state(training), before)
    assert loop.evaluate(training.task, training.result) == first


def test_evaluating_often_changes_no_bit_of_the_training(make_training, tmp_path):
    assert len(finish(often := make_training(recipe={"evaluate_every": 1}), tmp_path / "a.pt")) == 24
    assert len(finish(never := make_training(recipe={"evaluate_every": 0}), tmp_path / "b.pt")) == 13
    assert same(state(often), state(never))


def test_scoring_candidates_leaves_batch_norm_dropout_and_generators_alone(make_training, tmp_path):
    finish(choosing := make_training(selector=f"{__name__}:KeepAll", rule="kl(rho=8)"), tmp_path / "a.pt")
    finish(plain := make_training(rule="kl(rho=8)"), tmp_path / "b.pt")
    assert same(state(choosing) | {"of": None}, state(plain) | {"of": None})


def test_a_reference_that_draws_random_numbers_does_not_disturb_the_target(make_training, tmp_path):
    finish(computed := make_training(reference_scale=0.0), tmp_path / "a.pt")
    finish(alone := make_training(subtract=False), tmp_path / "b.pt")
    assert same(computed.model.state_dict(), alone.model.state_dict())


# ------------------------------------------------------------------------------------------ a bad number


@pytest.mark.parametrize("arm", ["plain", "reference chooses"])
def test_nan_in_the_loss_stops_the_run_and_names_step_and_samples(make_training, toy, tmp_path, arm):
    training = make_training(toy(poison=5), **ARMS[arm])
    with pytest.raises(RunError, match=r"the loss became nan in step \d+; sample ids 5$"):
        finish(training, tmp_path / "c.pt")
    kept = checkpoint.load(tmp_path / "c.pt")
    assert kept["done"] == training.done - training.done % 4
    assert all(value.isfinite().all() for value in kept["model"].values())


@pytest.mark.parametrize("arm", ["steered", "reference chooses"])
def test_a_reference_whose_losses_are_no_numbers_is_blamed_and_not_the_samples(make_training, toy, arm):
    task = exchange(toy(), reference=lambda: lambda batch: torch.where(batch.ids == 5, torch.nan, batch.ids / 24))
    with pytest.raises(
        UserError, match=r"^the reference's own losses are not finite, of sample ids 5 say: its weights"
    ):
        for _ in range(3):
            make_training(task, **ARMS[arm], recipe={"batch": 12}).step()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias", "running_var"])
def test_a_reference_whose_weights_are_no_numbers_is_refused_by_name(make_training, toy, name, value):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    model.state_dict()[f"0.{name}"][1] = value
    with pytest.raises(UserError, match=rf"the reference's weights 0\.{name} are not finite: the model is damaged"):
        make_training(exchange(toy(), reference=lambda: model), **ARMS["steered"]).step()


@pytest.mark.parametrize("settings", [{"batch": 1}, {"micro_batch": 1}, {"batch": 9, "micro_batch": 4}], ids=str)
def test_batch_norm_with_one_sample_is_explained(make_training, settings):
    with pytest.raises(UserError, match=r"batch norm needs more than one sample.*: use a larger --batch, or a micro-b"):
        make_training(recipe=settings).step()


@pytest.mark.parametrize("settings", [{"steps": 1}, {"checkpoint_every": 1}])
def test_weights_that_are_no_numbers_never_replace_a_good_checkpoint(make_training, tmp_path, settings):
    training = make_training(recipe=settings)
    training.model[0].weight.register_hook(lambda gradient: gradient * torch.nan)  # the loss of the step is still good
    with pytest.raises(
        RunError, match=r"weights of 0\.weight are not finite after step 1: use a smaller learning rate"
    ):
        finish(training, tmp_path / "c.pt")
    assert checkpoint.load(tmp_path / "c.pt")["done"] == 0


# ---------------------------------------------------------------------------------- against plain PyTorch


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_uniform_arm_is_plain_training(make_training, toy, tmp_path, optimizer):
    settings = {"optimizer": optimizer, "weight_decay": 0.1, "clip_norm": 0.5, "schedule": "constant", "warmup": 0}
    stream = make_training(toy(), 3, settings, subtract=False).stream
    seeds.seed_everything(seeds.derive(3, "model"))
    model = toy().target()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    stepper = make(groups, lr=0.05, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    model.train()
    loss = torch.zeros(())
    for step in range(12):
        seeds.seed_everything(seeds.derive(3, "step", step, 0, 0))
        batch = next(stream)
        loss = cross_entropy(model(batch["x"]), batch["y"])
        stepper.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        stepper.step()
    records = finish(training := make_training(toy(), 3, settings, subtract=False), tmp_path / "c.pt")
    assert [r for r in records if "loss" in r][-1]["loss"] == pytest.approx(loss.item(), abs=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(training.model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_the_records_say_what_was_done(make_training, tmp_path):
    records = [r for r in finish(make_training(**ARMS["selector"]), tmp_path / "c.pt") if "loss" in r]
    assert [r["samples"] for r in records] == [8 * step for step in range(1, 13)]
    assert {"loss", "effective", "scale", "variance_ratio", "learning_rate", "facts"} < records[0].keys()
    plain = make_training(**ARMS["plain"])
    assert [plain.step()["scale"] for _ in range(3)] == [None] * 3
    assert plain.counters.means() == {"odd": 0.5}  # of an epoch, three batches of 8 among 24 ids


# --------------------------------------------------------------------------------------------- two ranks


def train_blobs(folder: str, file: str, steps: int, stop_at: int | None = None) -> loop.Training:
    """A steered arm with a memory; on the last rank alone is there a wish to stop."""
    task = registry.build("tasks", "blobs")
    recipe = task.recipe.model_copy(update={"steps": steps, "batch": 40, "evaluate_every": 0, "checkpoint_every": 5})
    arm = Arm(rule="kl(rho=8)", gamma=0.5, reference_scale="auto")
    reference = ReferenceLosses(task, folder=Path(folder) / "losses")
    training = loop.Training(task, arm, recipe, reference=reference, seed=0)
    wish = rank() == world_size() - 1
    path = Path(folder) / file
    loop.run(training, path, record=lambda _: None, stopped=lambda: wish and training.done == stop_at)
    return training


def one_rank(rank_number: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank_number, world_size=2)
    uninterrupted = train_blobs(folder, "whole.pt", 12)
    first = train_blobs(folder, "parts.pt", 12, stop_at=7)
    torch.distributed.barrier()  # rank 0 has written the checkpoint
    second = train_blobs(folder, "parts.pt", 12)
    torch.save([state(uninterrupted), first.done, state(second)], f"{folder}/rank{rank_number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_stop_and_resume_as_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[__name__.count(".")])  # so that the ranks find this module
    spawn(one_rank, (str(tmp_path),), nprocs=2)
    alone = state(train_blobs(str(tmp_path), "alone.pt", 12))
    for rank_number in range(2):
        uninterrupted, stopped_after, resumed = torch.load(tmp_path / f"rank{rank_number}.pt")
        assert stopped_after == 7
        assert same(uninterrupted, resumed)
        assert uninterrupted["counters"].pop("facts") == pytest.approx(alone["counters"]["facts"], rel=1e-5)
        assert uninterrupted["counters"] == pytest.approx(
            {k: v for k, v in alone["counters"].items() if k != "facts"}, rel=1e-5
        )
        torch.testing.assert_close(uninterrupted["model"], alone["model"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(uninterrupted["steerer"]["memory"], alone["steerer"]["memory"], rtol=1e-4, atol=1e-5)
