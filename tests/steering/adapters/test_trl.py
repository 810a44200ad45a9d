"""A steered SFTTrainer is the loop by hand with data padded, packed and padding-free, without a tensor of logits."""

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
    texts,
    token_losses,
    weights_of,
)

from steering import DualMemory, Steerer, UserError

pytest.importorskip("trl", minversion="1.16")

from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from steering.adapters.trl import SteeredSFTMixin

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of hosts
STEPS, RULE = 2, "cvar(alpha=0.3)"
FORMS = {
    "padded": {},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 16, "per_device_train_batch_size": 64, "max_steps": 1},
}


class SteeredSFTTrainer(SteeredSFTMixin, SFTTrainer): ...  # type: ignore[reportIncompatibleMethodOverride]


def data(column: bool) -> Dataset:
    samples: list[dict[str, Any]] = [dict(sample) for sample in texts()]
    if column:
        with torch.no_grad():
            losses = token_losses(language_model(1), texts())
        for sample, values in zip(samples, losses, strict=True):
            sample["reference_loss"] = values.tolist()
    return Dataset.from_list(samples)


def trainer_of(folder: Any, dataset: Dataset, reference: Any, steerer: Steerer | None, **options: Any) -> Any:
    vocabulary = Tokenizer(models.WordLevel({str(k): k for k in range(VOCABULARY)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="1", eos_token="2", unk_token="0")
    model = options.pop("model", None) or language_model(0, dtype=torch.float32)
    descent = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    steering = {} if steerer is None else {"steerer": steerer, "reference": reference}
    evaluation = options.pop("eval_dataset", None)
    defaults = {
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return (SFTTrainer if steerer is None else SteeredSFTTrainer)(
        model,
        SFTConfig(str(folder), **{**defaults, **options}),
        train_dataset=dataset,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        optimizers=(descent, torch.optim.lr_scheduler.LambdaLR(descent, lambda _: 1.0)),
        **steering,
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Weights after the steps of every form by hand; where it is packed, one step of all samples."""
    result = {}
    for form in FORMS:
        model, steerer = language_model(0), Steerer(RULE)
        with pytest.MonkeyPatch.context() as patch:
            if form == "packed":
                patch.setattr("loops.BATCH", len(texts()))
            by_hand(model, language_model(1), steerer, 1 if form == "packed" else STEPS)
        result[form] = weights_of(model)
    return result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", [False, True], ids=["model", "column"])
def test_an_sft_trainer_is_the_loop_by_hand_in_every_form_of_data(tmp_path, expected, form, column):
    reference = None if column else language_model(1, dtype=torch.float32)
    trainer = trainer_of(tmp_path, data(column), reference, Steerer(RULE), **FORMS[form])
    trainer.train()
    assert torch.allclose(weights_of(trainer.model).double(), expected[form], atol=1e-5)
    records = [x for x in trainer.state.log_history if "loss" in x]
    assert min(x["loss"] for x in records) > 0 and "mean_token_accuracy" in records[0]


def test_accumulated_and_padded_micro_batches_are_one_batch(tmp_path, expected):
    sizes = {"per_device_train_batch_size": BATCH // 4, "gradient_accumulation_steps": 4}
    trainer = trainer_of(tmp_path, data(True), None, Steerer(RULE), **sizes)
    trainer.train()
    assert torch.allclose(weights_of(trainer.model).double(), expected["padded"], atol=1e-5)


@pytest.mark.parametrize("form", ["padded", "padding-free"])
def test_documents_are_weighed_alone_whether_they_are_padded_or_not(tmp_path, form):
    """With a memory of each, by its index."""
    make = lambda: Steerer("kl(temperature=0.5)", over="rows", memory=DualMemory(SAMPLES, gamma=0.5))  # noqa: E731
    model, numbered = language_model(0), data(True).add_column("index", list(range(SAMPLES)))
    by_hand(model, language_model(1), make(), STEPS, rows=document_rows, ids=indices)
    trainer = trainer_of(tmp_path, numbered, None, make(), **FORMS[form])
    trainer.train()
    assert torch.allclose(weights_of(trainer.model).double(), weights_of(model), atol=1e-5)


def on_a_rank() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"per_device_train_batch_size": BATCH // 4, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
        reference = language_model(1, dtype=torch.float32)
        trainer = trainer_of(folder, data(False), reference, Steerer(RULE), **sizes)
        trainer.train()
        return weights_of(trainer.model)


def test_two_processes_whose_batches_are_padded_unlike_are_the_loop_by_hand(tmp_path, expected):
    for result in on_two_ranks(on_a_rank, tmp_path):
        assert torch.allclose(result.double(), expected["padded"], atol=1e-5)


def test_evaluation_and_its_metrics_are_the_plain_trainers(tmp_path):
    results = []
    for steerer in (Steerer(RULE), None):
        trainer = trainer_of(tmp_path, data(True), None, steerer, eval_dataset=data(True))
        timed = ("per_second", "runtime", "_time")
        results.append({name: x for name, x in trainer.evaluate().items() if not name.endswith(timed)})
    assert results[0] == pytest.approx(results[1], rel=1e-6)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_no_tensor_of_all_logits_is_ever_made(tmp_path, monkeypatch):
    """Neither of the target nor of the reference; the head goes through the vocabulary in tiles."""
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 512)
    vocabulary = 4096
    target, reference = (language_model(seed, vocabulary, torch.float32) for seed in range(2))
    trainer = trainer_of(tmp_path, data(False), reference, Steerer(RULE), model=target, max_steps=1)
    with Largest() as largest:
        trainer.train()
    tokens = sum(len(sample["input_ids"]) for sample in texts()[:BATCH])
    assert vocabulary < largest.entries < tokens * vocabulary / 2


def test_a_mistake_is_one_line(tmp_path, monkeypatch):
    reference = language_model(1, dtype=torch.float32)
    with pytest.raises(UserError, match=r"steering weighs the losses of tokens, loss_type='nll', got 'dft'"):
        trainer_of(tmp_path, data(False), reference, Steerer(RULE), loss_type="dft")
    with pytest.raises(UserError, match=r"target and reference have one vocabulary \(or classes\), got 32 and 40"):
        trainer_of(tmp_path, data(False), language_model(1, 40, torch.float32), Steerer(RULE))
    cut = trainer_of(tmp_path, data(True), None, Steerer(RULE), max_length=5)
    with pytest.raises(UserError, match=r"reference_loss has one entry a token, got .*: truncate it as the tokens are"):
        cut.train()
    monkeypatch.delattr("trl.trainer.utils.add_fused_lm_head")
    with pytest.raises(UserError, match=r"steering needs the fused head of TRL 1.16 or newer: pip install -U trl"):
        trainer_of(tmp_path, data(False), reference, Steerer(RULE))
