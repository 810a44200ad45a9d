"""Selective language modelling as a task."""

import math
from typing import Any

import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.tasks.language.model import CausalTransformer
from steering.tasks.language.pretrained import PretrainedReference
from steering.tasks.language.task import CONTEXT, Language, held_out, windows
from steering.tasks.language.text import speeches, tokenise
from steering.testing import check_task
from steering.training.loop import Training, evaluate


def test_a_noise_that_is_no_share_is_an_error():
    with pytest.raises(UserError, match="noise within 0 and 1"):
        Language(noise=1.5)


def test_windows_overlap_by_the_one_token_that_is_no_target():
    tokens = torch.arange(3 * CONTEXT + 5)
    cut = windows(tokens)
    assert cut.shape == (3, CONTEXT + 1) and cut[0, -1] == cut[1, 0] == CONTEXT


def test_a_fresh_model_answers_with_the_frequencies_of_single_tokens():
    frequencies = torch.tensor([5.0, 3.0, 0.0])
    model = CausalTransformer(frequencies, length=4)
    answer = model(torch.tensor([[0, 1, 2, 0]])).softmax(-1)
    assert torch.allclose(answer, torch.tensor([6 / 11, 4 / 11, 1 / 11]).expand(1, 4, 3))


def test_a_token_is_foretold_without_those_after_it():
    torch.manual_seed(0)
    model: Any = CausalTransformer(torch.ones(9), length=8)
    torch.nn.init.normal_(model.head.weight)
    for block in model.blocks:
        torch.nn.init.normal_(block.project.weight)
    tokens = torch.randint(9, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] = (tokens[0, 5:] + 1) % 9
    one, other = model(tokens), model(changed)
    assert torch.allclose(one[:, :5], other[:, :5]) and not torch.allclose(one[:, 5:], other[:, 5:])


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory):
    """A folder with an untrained causal model and a byte pair tokenizer, as Hugging Face writes them."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("causal")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [speeches()["reference"][0]], vocab_size=400, special_tokens=["<s>"], show_progress=False
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_text_costs_as_much_by_a_pretrained_models_tokens_as_by_ours(causal_model):
    text = tokenise([speeches()["held_out"][0][:3000]])
    reference = PretrainedReference(causal_model, text, context=32)
    window = reference._window(2)
    begin, first, end = (int(text.ends[k]) for k in (63, 64, 96))
    per_character = reference._per_character(text.text[begin:end])
    assert window.shape == (32,) and (window > 0).all()
    assert float(window.sum()) == pytest.approx(float(per_character[first - begin :].sum()), rel=1e-5)
    tokens = torch.tensor([[0, *reference.tokenizer(text.text[begin:end], add_special_tokens=False)["input_ids"]]])
    mean = reference.model(tokens, labels=tokens).loss
    assert float(per_character.sum()) == pytest.approx(float(mean) * (tokens.shape[1] - 1), rel=1e-5)


@pytest.mark.slow
def test_a_pretrained_model_answers_a_batch_by_the_path_of_its_folder(causal_model):
    task = Language(ref=causal_model)
    batch = next(task.stream(4, seed=0))
    losses: Any = ReferenceLosses(task)(batch).values
    assert losses.shape == (4, CONTEXT) and losses.isfinite().all()


def test_a_model_that_is_not_there_is_one_line():
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="cannot load the causal language model '/nowhere'") as error:
        PretrainedReference("/nowhere", tokenise(["a b"]), 1)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_language_keeps_the_contract_of_a_task():
    check_task(Language())


@pytest.mark.slow
def test_the_reference_knows_the_language_and_tells_misread_tokens_from_others():
    task = Language()
    reference = ReferenceLosses(task)
    fresh = evaluate(task, task.target())["loss"]
    assert evaluate(task, reference.model)["loss"] < 4.8 < 5.5 < fresh < math.log(1282)
    batch = next(task.stream(200, seed=0))
    losses: Any = reference(batch).values
    wrong = batch.facts["wrong"]
    assert losses[wrong].mean() > losses[~wrong].mean() + 1


@pytest.mark.slow
def test_tokens_that_rho1_learns_from_are_less_often_misread():
    task = Language()
    recipe = task.recipe.model_copy(update={"steps": 30, "warmup": 3})
    reference = ReferenceLosses(task)
    shares = {}
    for name in ("plain", "rho1"):
        training = Training(task, task.recipe.arms[name], recipe, reference=reference, seed=0)
        for _ in range(30):
            training.step()
        shares[name] = training.counters.means()["wrong"]
    assert shares["rho1"] < shares["plain"] - 0.08
    assert held_out().shape == (320, CONTEXT + 1)
