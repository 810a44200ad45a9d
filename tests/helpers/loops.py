"""Tiny language models, texts of unlike lengths, the loop by hand, and two processes, for adapters of loops."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from steering import Steerer

VOCABULARY, SAMPLES, BATCH, LEARNING_RATE = 32, 64, 32, 0.5


def language_model(seed: int, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float64) -> Any:
    """A GPT-2 of 2,000 weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": vocabulary, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=0, eos_token_id=0)).to(dtype)  # type: ignore
    model.loss_type = "ForCausalLM"  # or the Trainer would count the first label of a text, which has no loss
    return model


def texts(scored_share: float = 0.7) -> list[dict[str, list[int]]]:
    """Samples of 3 to 12 tokens, some of which have no label."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for length in torch.randint(3, 13, (SAMPLES,), generator=generator).tolist():
        tokens = torch.randint(VOCABULARY, (length,), generator=generator)
        labels = tokens.masked_fill(torch.rand(length, generator=generator) > scored_share, -100)
        labels[-1] = tokens[-1]
        samples.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    return samples


def padded(samples: list[dict[str, list[int]]], left: bool = False) -> dict[str, Tensor]:
    """A collator that pads; on the left the first token has no label, as padding would predict it."""
    side = "left" if left else "right"
    columns = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    lines = [{**sample, "attention_mask": [1] * len(sample["input_ids"])} for sample in samples]
    lines = [{**line, "labels": [-100, *line["labels"][1:]]} for line in lines] if left else lines
    tensors = {name: [torch.tensor(line[name]) for line in lines] for name in columns}
    return {name: pad_sequence(x, True, columns[name], padding_side=side) for name, x in tensors.items()}


def token_losses(model: nn.Module, samples: list[dict[str, list[int]]]) -> list[Tensor]:
    """Of every sample alone, the losses of all its tokens, that of the first NaN."""
    losses = []
    for sample in samples:
        tokens = torch.tensor([sample["input_ids"]])
        logits = model(input_ids=tokens).logits[0, :-1]
        values = cross_entropy(logits, tokens[0, 1:], reduction="none")
        losses.append(torch.cat([values.new_tensor([torch.nan]), values]))
    return losses


def of_labels(losses: list[Tensor], samples: list[dict[str, list[int]]]) -> Tensor:
    """Those of tokens that have a label, ``[entries]``."""
    kept = [torch.tensor(sample["labels"][1:]) != -100 for sample in samples]
    return torch.cat([values[1:][mask] for values, mask in zip(losses, kept, strict=True)])


def by_hand(model: nn.Module, reference: nn.Module, steerer: Steerer, steps: int, **options: Callable) -> list[float]:
    """Gradient descent on whole batches, in the order of the data; gives the weighted losses.

    ``options`` make those of the steerer of the samples of a batch.
    """
    optimizer, data, weighted = torch.optim.SGD(model.parameters(), LEARNING_RATE), texts(), []
    for step in range(steps):
        numbers = [k % SAMPLES for k in range(step * BATCH, (step + 1) * BATCH)]
        samples = [{**data[k], "index": k} for k in numbers]
        losses = of_labels(token_losses(model, samples), samples)
        with torch.no_grad():
            reference_losses = of_labels(token_losses(reference, samples), samples)
        steered = steerer(losses, reference_losses, **{name: make(samples) for name, make in options.items()})
        steered.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        weighted.append(float(steered.weighted_loss))
    return weighted


def document_rows(samples: list[dict[str, Any]]) -> Tensor:
    """The sample of every token that has a label, ``[entries]``."""
    counts = [sum(label != -100 for label in sample["labels"][1:]) for sample in samples]
    return torch.arange(len(samples)).repeat_interleave(torch.tensor(counts))


def indices(samples: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([sample["index"] for sample in samples])


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([x.detach().flatten() for x in model.parameters()])


def _one_rank(rank: int, function: Callable[[], Any], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(x) for name, x in rendezvous.items()}, MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="1")
    torch.save(function(), f"{folder}/rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two_ranks(function: Callable[[], Any], folder: Path) -> list[Any]:
    """What a function of a test module gives on values of two processes, which a host joins by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        helpers, root = Path(__file__).parent, Path(__file__).parents[2]
        patch.setattr(sys, "path", [str(root), str(helpers), *sys.path])  # so that the ranks find the test's module
        spawn(_one_rank, (function, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
