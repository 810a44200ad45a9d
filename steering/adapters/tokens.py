"""Batches of Hugging Face's libraries: labels, the columns of steering, and losses of tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.task import Losses

COLUMNS = ("index", "reference_loss")
IGNORED = -100  # the label of a token that has no loss


@dataclass(frozen=True)
class Collator:
    """Puts the columns of steering next to what a collator of any kind makes of the others."""

    collate: Callable[[list[dict]], Any]

    def __call__(self, features: list[dict]) -> Any:
        if not isinstance(features[0], Mapping):
            return self.collate(features)
        columns = {name: [sample[name] for sample in features] for name in COLUMNS if name in features[0]}
        batch = self.collate([{name: x for name, x in sample.items() if name not in columns} for sample in features])
        if "index" in columns:
            batch["index"] = torch.as_tensor(columns["index"])
        losses = [torch.as_tensor(x) for x in columns.get("reference_loss", [])]
        if losses and losses[0].dim():  # of tokens, in the shape of labels that are padded or packed
            batch["reference_loss"] = self._aligned(losses, features, batch)
        elif losses:
            batch["reference_loss"] = torch.stack(losses)
        return batch

    def _aligned(self, losses: list[Tensor], features: list[dict], batch: Any) -> Tensor:
        counts, tokens = (torch.tensor([len(x) for x in y]) for y in (losses, [x["input_ids"] for x in features]))
        if not counts.equal(tokens):
            raise UserError(
                f"reference_loss has one entry a token, got {counts[:3].tolist()} for {tokens[:3].tolist()} tokens: "
                f"truncate it as the tokens are, or score anew"
            )
        labels, n = batch["labels"], len(counts)
        ends = counts if len(labels) == n else counts.sum()[None]
        from_left = torch.arange(labels.shape[1]) < ends[:, None]
        flat = Losses(torch.cat(losses), rows=torch.arange(n).repeat_interleave(counts))
        return align(flat, n, batch.get("attention_mask"), from_left)


def predicts_next(model: nn.Module) -> bool:
    """Whether a model predicts every label from those before it."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    kind = getattr(model, "loss_type", "other")  # None of GPT2LMHeadModel and others, which are causal
    return LOSS_MAPPING.get(kind or "ForCausalLM") is ForCausalLMLoss and not _is_encoder_decoder(model)


def _is_encoder_decoder(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def label_mask(model: nn.Module, inputs: Any) -> Tensor:
    """Which of a micro-batch's labels have a loss, shaped like them.

    Raises:
        UserError: there are no labels.
    """
    if inputs.get("labels") is None:
        raise UserError(f"steering needs labels to take losses of, got a batch of {', '.join(inputs)}")
    mask = inputs["labels"] != IGNORED
    if predicts_next(model):
        mask[:, 0] = False
    return mask


def row_numbers(inputs: Any, mask: Tensor) -> Tensor:
    """The document of every token that has a loss, ``[entries]``: of packed lines, or a line each."""
    first = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    starts = inputs.get("position_ids", first) == 0
    return (starts.flatten().cumsum(0) - 1).view(mask.shape)[mask]


def entry_losses(target: nn.Module, model: nn.Module, inputs: Any) -> Tensor:
    """Losses ``[entries]`` of a micro-batch: of its samples, or of its tokens that have a label, in their order.

    Args:
        target: which tells how labels are to be read.
        model: which is run: the target, what wraps it, or a reference.
        inputs: of the target, labels among them.
    """
    unused = COLUMNS if _is_encoder_decoder(target) else (*COLUMNS, "labels")  # a decoder is fed the labels
    outputs = model(**{name: x for name, x in inputs.items() if name not in unused})
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if logits is not None and outputs.get("aux_loss") is not None and torch.is_grad_enabled():
        raise UserError("the auxiliary loss of a mixture of experts would be lost: set output_router_logits=False")
    mask, labels = label_mask(target, inputs), inputs["labels"]
    if predicts_next(target) and isinstance(logits, Tensor):
        logits, labels, mask = logits[:, :-1], labels[:, 1:], mask[:, 1:]
    return losses_of_logits(logits, labels)[mask]


def reference_entries(answer: Losses, mask: Tensor, inputs: Any) -> Losses:
    """The losses ``[entries]`` of the tokens or samples of a mask, of what a column or a table says of a micro-batch.

    Raises:
        UserError: it says nothing of some of them, or has unequal lengths.
    """
    values = answer.values
    if not isinstance(values, Tensor) or values.shape != mask.shape:
        n = len(inputs.get("index", mask))
        values = align(answer, n, mask, inputs.get("attention_mask"), torch.ones_like(mask))
    if values[mask].isnan().any():
        raise UserError("labels without a reference loss (NaN): they are of other data, score anew")
    return Losses(values[mask])


def losses_of_logits(logits: Any, labels: Tensor) -> Tensor:
    """Cross-entropies of logits, squared errors of predicted numbers, shaped like the labels.

    Raises:
        UserError: there are no logits, or labels do not fit them.
    """
    if not isinstance(logits, Tensor):
        raise UserError("the model gives no logits to take losses of tokens or samples from: override entry_losses")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if labels.is_floating_point() and labels.dim() == 1 and logits.numel() == labels.numel():
        return (logits.reshape(labels.shape) - labels).square()
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        raise UserError(
            f"labels are [n] or [n, length] classes for logits [n, classes] or [n, length, classes], got "
            f"{labels.dtype} {list(labels.shape)} for {list(logits.shape)}: override entry_losses"
        )
    try:
        return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    except IndexError:  # on a GPU this is an assertion of the device
        raise UserError(
            f"labels are below {logits.shape[-1]}, the classes of the model, or {IGNORED}, got {int(labels.max())}: is "
            f"the tokenizer another model's?"
        ) from None


def align(losses: Losses, n: int, *masks: Tensor | None) -> Tensor:
    """Reference losses in the positions of the first mask that has as many of them, NaN elsewhere, shaped like it.

    Args:
        losses: ``[n]``, ``[n, columns]`` or flat with rows.
        n: number of samples.
        masks: ``[n, length]``, or of fewer lines where samples are packed into them.

    Raises:
        UserError: unequal lengths.
    """
    values, keep, rows = losses.values, losses.mask, losses.rows
    assert isinstance(values, Tensor)
    if rows is not None:
        counts, values = rows.bincount(minlength=n), values[rows.argsort(stable=True)]
    else:
        keep = torch.ones_like(values, dtype=torch.bool) if keep is None else keep.bool()
        counts, values = keep.reshape(n, -1).sum(1), values[keep]
    for mask in masks:
        if mask is not None:
            packed = len(mask) != n
            tokens = mask.sum()[None] if packed else mask.reshape(n, -1).sum(1)
            if tokens.equal((counts.sum()[None] if packed else counts).to(tokens)):
                empty = torch.full(mask.shape, torch.nan, device=mask.device, dtype=values.dtype)
                return empty.masked_scatter(mask.bool(), values.to(mask.device))
    expected = [mask.reshape(len(mask), -1).sum(1)[:3].tolist() for mask in masks if mask is not None]
    raise UserError(
        f"a reference has one loss a token, or one a token with a label, got {counts[:3].tolist()} of the first "
        f"samples for {' or '.join(map(str, expected))}: truncate them as the tokens are, or score anew"
    )
