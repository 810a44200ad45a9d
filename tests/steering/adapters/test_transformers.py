"""A steered Trainer is the loop by hand: accumulated, padded, on two processes, saved and resumed."""

import copy
import tempfile
from typing import Any

import pytest
import torch
from loops import (
    BATCH,
    LEARNING_RATE,
    SAMPLES,
    VOCABULARY,
    by_hand,
    document_rows,
    indices,
    language_model,
    on_two_ranks,
    padded,
    texts,
    token_losses,
    weights_of,
)
from torch import nn

from steering import DualMemory, Steerer, UserError
from steering.errors import RunError
from steering.references import LossTable

pytest.importorskip("transformers", minversion="5")
pytest.importorskip("datasets")

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from steering.adapters.transformers import STATE, SteeredTrainerMixin

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of hosts
STEPS = 3


class SteeredTrainer(SteeredTrainerMixin, Trainer): ...


def data(reference: nn.Module | None = None) -> Dataset:
    """The texts, with the losses of a reference as a column."""
    columns: list[Any] = [dict(sample) for sample in texts()]
    if reference is not None:
        with torch.no_grad():
            losses = token_losses(reference, texts())
        for sample, values in zip(columns, losses, strict=True):
            sample["reference_loss"] = values.tolist()
    return Dataset.from_list(columns)


def arguments(folder: Any, accumulate: int = 1, ranks: int = 1, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=BATCH // accumulate // ranks,
        gradient_accumulation_steps=accumulate,
        max_steps=options.pop("max_steps", STEPS),
        train_sampling_strategy="sequential",
        max_grad_norm=0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy=options.pop("save_strategy", "no"),
        **options,
    )


def trained(steerer: Steerer | None, reference: Any, dataset: Dataset, args: TrainingArguments, **options: Any) -> Any:
    """A trainer that has trained a target; without a steerer it is the plain one."""
    model = options.pop("model", None) or language_model(0)
    descent = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(descent, lambda _: 1.0)
    steering = {} if steerer is None else {"steerer": steerer, "reference": reference}
    trainer_class = Trainer if steerer is None else SteeredTrainer
    resume = options.pop("resume", None)
    trainer = trainer_class(
        model,
        args,
        data_collator=options.pop("collate", padded),
        train_dataset=dataset,
        optimizers=(descent, constant),
        **options,
        **steering,
    )
    trainer.train(resume)
    return trainer


def logged(trainer: Trainer) -> list[float]:
    return [x["loss"] for x in trainer.state.log_history if "loss" in x]


RULES = ["cvar(alpha=0.3)", "kl(temperature=0.5)"]


def on_a_rank() -> dict[str, Any]:
    """What a process has learnt, and what it says of mistakes that befall one of the two."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"ranks": 2, "ddp_backend": "gloo"}
        results = {}
        for rule in RULES:
            trainer = trained(Steerer(rule), language_model(1), data(), arguments(folder, 4, **options))
            results[rule] = weights_of(trainer.model), logged(trainer)
        strange = data().map(lambda x, k: {"labels": [99 if k == 0 else 0] * len(x["labels"])}, with_indices=True)
        first = torch.distributed.get_rank() == 0
        mistakes = {"labels": (strange, language_model(1)), "reference": (data(), language_model(1) if first else None)}
        for name, (dataset, reference) in mistakes.items():
            for accumulate in (1, 4):
                with pytest.raises((UserError, RunError)) as error:
                    trained(Steerer(RULES[0]), reference, dataset, arguments(folder, accumulate, **options))
                results[f"{name} {accumulate}"] = str(error.value)
        return results


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple]:
    """Weights of the target and weighted losses, by hand, for every rule."""
    result = {}
    for rule in RULES:
        model = language_model(0)
        losses = by_hand(model, language_model(1), Steerer(rule), STEPS)
        result[rule] = weights_of(model), losses
    return result


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_trainer_is_the_loop_by_hand_also_with_accumulation(tmp_path, expected, rule, accumulate):
    trainer = trained(Steerer(rule), language_model(1), data(), arguments(tmp_path, accumulate))
    assert torch.allclose(weights_of(trainer.model), expected[rule][0], rtol=1e-10, atol=1e-12)
    assert logged(trainer) == pytest.approx(expected[rule][1], rel=1e-6) and min(logged(trainer)) > 0


def test_two_processes_with_accumulation_are_the_loop_by_hand_and_fail_together(tmp_path, expected):
    results = on_two_ranks(on_a_rank, tmp_path)
    for result in results:
        for rule in RULES:
            assert torch.allclose(result[rule][0], expected[rule][0], rtol=1e-10, atol=1e-12)
            assert result[rule][1] == pytest.approx(expected[rule][1], rel=1e-6)
    for accumulate in (1, 4):
        for name, rank, message in (
            ("labels", 0, "labels are below 32"),
            ("reference", 1, "steering needs a reference"),
        ):
            assert results[rank][f"{name} {accumulate}"].startswith(message)
            assert results[1 - rank][f"{name} {accumulate}"].startswith("another process of this run failed")


def test_every_kind_of_reference_says_the_same(tmp_path, expected):
    reference, samples, rule = language_model(1), texts(), RULES[0]
    with torch.no_grad():
        losses = token_losses(reference, samples)
    lengths = torch.tensor([0] + [len(x) for x in losses]).cumsum(0)
    table = LossTable(torch.cat([x.nan_to_num(9) for x in losses]), offsets=lengths)  # one loss a token
    kept = [x[1:][torch.tensor(sample["labels"][1:]) != -100] for x, sample in zip(losses, samples, strict=True)]
    scored = LossTable(torch.cat(kept), offsets=torch.tensor([0] + [len(x) for x in kept]).cumsum(0))
    numbered = data().add_column("index", list(range(len(samples))))
    left: Any = lambda batch: padded(batch, left=True)  # noqa: E731
    on_the_left = trained(Steerer(rule), table, numbered, arguments(tmp_path), collate=left)
    results: dict[Any, torch.Tensor] = {padded: expected[rule][0], left: weights_of(on_the_left.model)}
    for source, dataset, collate in (
        (None, data(reference), padded),
        (table, numbered, padded),
        (scored, numbered, padded),
        (None, data(reference), left),
    ):
        trainer = trained(Steerer(rule), source, dataset, arguments(tmp_path, 2), collate=collate)
        assert torch.allclose(weights_of(trainer.model), results[collate], rtol=1e-4, atol=1e-6)  # kept in float32


@pytest.mark.parametrize("average, gamma", [("rows", 1.0), ("entries", 1.0), ("rows", 0.5)])
def test_documents_are_weighed_alone_averaged_as_asked_and_remembered_by_index(tmp_path, average, gamma):
    memory = DualMemory(SAMPLES, gamma=gamma)
    steerer = Steerer("kl(temperature=0.5)", over="rows", average=average, memory=memory)
    model, numbered = language_model(0), data().add_column("index", list(range(SAMPLES)))
    by_hand(model, language_model(1), copy.deepcopy(steerer), STEPS, rows=document_rows, ids=indices)
    trainer = trained(steerer, language_model(1), numbered, arguments(tmp_path, 4))
    assert torch.allclose(weights_of(trainer.model), weights_of(model), rtol=1e-10, atol=1e-12)


def test_uniform_weights_train_as_the_plain_trainer(tmp_path):
    steered, plain = (
        trained(steerer, language_model(1), data(), arguments(tmp_path, 4)) for steerer in (Steerer("uniform"), None)
    )
    assert torch.allclose(weights_of(steered.model), weights_of(plain.model), rtol=1e-4, atol=1e-7)  # in float32 there
    assert logged(steered) == pytest.approx(logged(plain), rel=1e-6)


def test_evaluation_is_the_plain_trainers_although_its_data_have_the_columns(tmp_path):
    """A model without **kwargs would be handed a column, or num_items_in_batch, that it does not know."""
    dataset = Dataset.from_list(points(16)).add_column("index", list(range(16)))
    losses = [
        trained(
            steerer,
            Classifier(1),
            dataset,
            arguments(tmp_path, 4, eval_strategy="steps", eval_steps=1),
            model=Classifier(0),
            eval_dataset=dataset,
            collate=None,
        )
        for steerer in (Steerer("uniform"), None)
    ]
    first, second = ([x["eval_loss"] for x in y.state.log_history if "eval_loss" in x] for y in losses)
    assert first == pytest.approx(second, rel=1e-6) and len(first) == STEPS


class Classifier(nn.Module):
    """A model without **kwargs, to which the Trainer does not pass num_items_in_batch by itself."""

    def __init__(self, seed: int, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64) if dropout else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, labels=None):
        logits = self.dropout(self.norm(self.layer(x.double())))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def points(number: int) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(number, 3, generator=generator), torch.randint(4, (number,), generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def test_four_micro_batches_of_8_are_one_batch_of_32_and_not_four(tmp_path):
    """The trap: weighed one by one, CVaR learns something else. The number of labels is passed all the same."""
    dataset = Dataset.from_list(points(BATCH))
    x, y = (torch.tensor(dataset[name]) for name in ("x", "labels"))

    def one_step(sizes: int) -> torch.Tensor:
        model = Classifier(0)
        losses = lambda net, part: nn.functional.cross_entropy(net(x[part])["logits"], y[part], reduction="none")  # noqa: E731
        parts = torch.arange(BATCH).split(sizes)
        for part in parts:
            steered = Steerer("cvar(alpha=0.1)")(losses(model, part), losses(Classifier(1), part).detach())
            (steered.loss / len(parts)).backward()
        torch.optim.SGD(model.parameters(), LEARNING_RATE).step()
        return weights_of(model)

    numbers: list[int] = []

    class Counting(SteeredTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            numbers.append(int(num_items_in_batch))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    results = {}
    for accumulate in (1, 4):
        model = Classifier(0)
        descent = torch.optim.SGD(model.parameters(), LEARNING_RATE)
        args = arguments(tmp_path, accumulate, max_steps=1)
        trainer = Counting(
            model,
            args,
            train_dataset=dataset,
            optimizers=(descent, torch.optim.lr_scheduler.LambdaLR(descent, lambda _: 1.0)),
            steerer=Steerer("cvar(alpha=0.1)"),
            reference=Classifier(1),
        )
        trainer.train()
        results[accumulate] = weights_of(model)
    assert torch.allclose(results[1], one_step(32), rtol=1e-12) and torch.allclose(results[4], one_step(32), rtol=1e-12)
    assert not torch.allclose(results[4], one_step(8), rtol=1e-3)
    assert numbers == [BATCH] * 5


def test_both_passes_draw_the_same_noise_and_leave_running_means_alone(tmp_path):
    """The weights of a sample that dropout spoils are those of the spoilt sample."""
    seen = []

    class Watching(SteeredTrainer):
        def entry_losses(self, model, inputs):
            losses = super().entry_losses(model, inputs)
            if not isinstance(inputs, dict) or "reference_loss" in inputs:
                seen.append(losses.detach())
            return losses

    dataset = Dataset.from_list([{**point, "reference_loss": 0.0} for point in points(BATCH)])
    model, plain = Classifier(0, dropout=0.5), Classifier(0, dropout=0.5)
    args = arguments(tmp_path, 4, max_steps=1)
    Watching(model, args, train_dataset=dataset, steerer=Steerer("kl(temperature=1)")).train()
    assert len(seen) == 8 and all(torch.equal(seen[k], seen[k + 4]) for k in range(4))
    Trainer(plain, arguments(tmp_path, 4, max_steps=1), train_dataset=dataset.remove_columns("reference_loss")).train()
    assert torch.allclose(model.norm.running_mean, plain.norm.running_mean)  # type: ignore[arg-type]


def test_a_resumed_trainer_is_one_that_was_never_stopped(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    steerers = [Steerer("kl(temperature=0.5)", reference_scale="auto") for _ in range(3)]
    uninterrupted, _, resumed = (
        trained(
            steerer,
            language_model(1),
            data(),
            arguments(tmp_path / folder, 2, **{**options, "max_steps": steps}),
            resume=resume,
        )
        for steerer, folder, steps, resume in (
            (steerers[0], "once", 4, None),
            (steerers[1], "parts", 2, None),
            (steerers[2], "parts", 4, True),
        )
    )
    assert torch.equal(weights_of(uninterrupted.model), weights_of(resumed.model))
    first, second = (x.variance.values for x in (steerers[0], steerers[2]))
    assert first is not None and second is not None and torch.equal(first, second)
    (tmp_path / "parts" / "checkpoint-4" / STATE).unlink()
    with pytest.raises(UserError, match=r"steerer.pt is missing: resume from a checkpoint that was saved with"):
        trained(Steerer("uniform"), language_model(1), data(), arguments(tmp_path / "parts", max_steps=6), resume=True)


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask=None, labels=None):
        return {"loss": self.weight * 0}


def wrong(name: str) -> dict[str, Any]:
    """What a trainer is mistake for each mistake."""
    reference, dataset = language_model(1), data(language_model(1))
    short = dataset.map(lambda x: {"reference_loss": x["reference_loss"][:2]})
    strange = dataset.map(lambda x: {"labels": [99] * len(x["labels"])})
    gaps = dataset.map(lambda x: {"reference_loss": [float("nan")] * len(x["labels"])})
    number = dataset.map(lambda x: {"reference_loss": 0.5}, remove_columns="reference_loss")
    few = LossTable(torch.zeros(5), offsets=[0, 5])
    unlike = LossTable(torch.zeros(len(dataset)))
    numbered = data().add_column("index", list(range(len(dataset))))
    return {
        "another vocabulary": {"reference": language_model(1, VOCABULARY + 1)},
        "no reference": {},
        "a short column": {"dataset": short},
        "labels beyond the vocabulary": {"dataset": strange, "reference": reference},
        "NaN": {"dataset": gaps},
        "a number for tokens": {"dataset": number},
        "no index": {"reference": LossTable(torch.zeros(len(dataset)))},
        "a table of other data": {"reference": few},
        "one loss for a sample of tokens": {"reference": unlike, "dataset": numbered},
    }[name]


@pytest.mark.parametrize(
    "name, message",
    [
        ("another vocabulary", r"target and reference have one vocabulary \(or classes\), got 32 and 33"),
        ("no reference", r"steering needs a reference: reference=..., or a column reference_loss"),
        ("a short column", r"reference_loss has one entry a token, got \[2, 2, 2\] for \["),
        ("labels beyond the vocabulary", r"labels are below 32, the classes of the model, or -100, got 99"),
        ("NaN", r"labels without a reference loss \(NaN\): they are of other data"),
        ("a number for tokens", r"a reference has one loss a token, or one a token with a label, got \[1, 1, 1\]"),
        ("no index", r"a reference that is asked by id needs a column 'index' in every batch: dataset.add_column"),
        ("a table of other data", r"got 1 reference losses for 64 samples: they are of other data, score anew"),
        ("one loss for a sample of tokens", r"a reference has one loss a token, or one a token with a label, got"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, name, message):
    mistake = {"dataset": data(), "reference": None} | wrong(name)
    with pytest.raises(UserError, match=message) as error:
        trained(Steerer("uniform"), args=arguments(tmp_path, 2), **mistake)
    assert "\n" not in str(error.value)


def test_a_model_without_losses_of_tokens_and_hosts_that_lack_the_hook_are_one_line(tmp_path):
    with pytest.raises(UserError, match="the model gives no logits to take losses of tokens or samples from"):
        trained(Steerer("uniform", reference_scale=0), None, data(), arguments(tmp_path, 2), model=Headless())

    class Old:
        def get_batch_samples(self, epoch_iterator, num_batches): ...

    for base in (Old, object):
        with pytest.raises(UserError, match="needs a Trainer of transformers 5 or newer, with get_batch_samples"):
            type("Steered", (SteeredTrainerMixin, base), {})(steerer=Steerer("uniform"))
    with pytest.raises(UserError, match="compute_loss_func and label_smoothing_factor give one loss a batch"):
        SteeredTrainer(language_model(0), arguments(tmp_path, label_smoothing_factor=0.1), steerer=Steerer("uniform"))
    same = language_model(0)
    with pytest.raises(UserError, match="the reference is another model than the target, got the target itself"):
        SteeredTrainer(same, arguments(tmp_path), steerer=Steerer("uniform"), reference=same)
