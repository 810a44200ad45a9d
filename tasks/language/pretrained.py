"""A pretrained causal language model as reference, whatever its vocabulary: losses are shared out by character."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steering.errors import UserError
from steering.task import Batch, Losses
from steering.tasks.language.text import Tokens


class PretrainedReference:
    """Answers a batch with the losses of a causal model of Hugging Face on the same text.

    Its tokens are others than ours. The loss of each is spread evenly over its characters, and the loss of one of our
    tokens is the sum over its own; so the loss of a text is the same by both, but for what lies before its first token.

    Args:
        name: of a model on the hub, or a folder; weights are read from safetensors alone, and no code of its own runs.
        text: that windows are cut from.
        context: tokens in a window, after its first.
        device: where the model runs.

    Raises:
        UserError: transformers is not installed, or there is no such model.
    """

    def __init__(self, name: str, text: Tokens, context: int, device: torch.device | str = "cpu"):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise UserError(
                "a pretrained reference needs transformers: pip install 'model-steering[language]'"
            ) from None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        except Exception as error:  # of a file, a network, a format: transformers has no exception of its own
            line = " ".join(str(error).split())[:200]
            raise UserError(f"cannot load the causal language model {name!r}: {line}") from None
        if not self.tokenizer.is_fast:
            raise UserError(f"{name!r} has no fast tokenizer, which tells where in a text its tokens are: use another")
        self.model = model.to(device).eval().requires_grad_(False)
        self.text, self.context, self.device = text, context, device

    def __call__(self, batch: Batch) -> Losses:
        return Losses(torch.stack([self._window(int(index)) for index in batch.ids]))

    @torch.no_grad()
    def _window(self, index: int) -> Tensor:
        """The losses of all tokens of a window but its first, ``[context]``."""
        first = index * self.context
        ends = self.text.ends[first : first + self.context + 1]
        begin = int(self.text.ends[first - 1]) if first else 0
        per_character = self._per_character(self.text.text[begin : int(ends[-1])])
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), per_character.cumsum(0)])
        return (sums[ends[1:] - begin] - sums[ends[:-1] - begin]).float()

    def _per_character(self, text: str) -> Tensor:
        """The loss of every character of a text, ``[characters]`` float64."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        tokens = torch.tensor([([] if start is None else [start]) + ids], device=self.device)
        losses = (
            F.cross_entropy(self.model(tokens).logits[0, :-1].float(), tokens[0, 1:], reduction="none").cpu().double()
        )
        losses = losses if start is not None else F.pad(losses, (1, 0))  # nothing foretells the first token
        per_character = torch.zeros(len(text), dtype=torch.float64)
        for loss, (begin, end) in zip(losses.tolist(), spans, strict=True):
            per_character[begin:end] += loss / max(1, end - begin)
        return per_character
