"""Steering in TRL's SFTTrainer: tokens are weighed without a ``[batch, length, vocabulary]`` tensor."""

from copy import copy
from typing import Any

from torch import Tensor, nn

from steering.adapters.tokens import COLUMNS
from steering.adapters.transformers import SHARE, SteeredTrainerMixin
from steering.engine import Steerer
from steering.errors import UserError


class SteeredSFTMixin(SteeredTrainerMixin):
    """Steers an ``SFTTrainer`` by the token losses of its fused head, for data that are padded, packed or padding-free.

    See ``SteeredTrainerMixin`` for the arguments. A reference model gets a fused head, too. Where the trainer packs, a
    column ``reference_loss`` of tokenized data is packed with them.

    Example:
        >>> from trl import SFTTrainer
        >>> class SteeredSFTTrainer(SteeredSFTMixin, SFTTrainer): ...
        >>> trainer = SteeredSFTTrainer(model, steerer=Steerer("cvar(alpha=0.6)"), reference=small)  # doctest: +SKIP
    """

    def __init__(self, *args: Any, steerer: Steerer, reference: Any = None, **kwargs: Any):
        super().__init__(*args, steerer=steerer, reference=reference, **kwargs)
        if self.args.loss_type != "nll":
            raise UserError(f"steering weighs the losses of tokens, loss_type='nll', got {self.args.loss_type!r}")
        try:
            from trl.trainer.utils import add_fused_lm_head
        except ImportError:
            raise UserError("steering needs the fused head of TRL 1.16 or newer: pip install -U trl") from None
        if isinstance(reference, nn.Module):
            add_fused_lm_head(reference)  # type: ignore[arg-type]

    def entry_losses(self, model: nn.Module, inputs: Any) -> Tensor:
        """Losses ``[entries]`` of the tokens of a micro-batch that have a label, in their order."""
        inputs = {name: x for name, x in inputs.items() if name not in COLUMNS}
        outputs = model(**inputs, fused_lm_head=True)
        return -outputs.log_probs[outputs.label_mask]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
        """A micro-batch's part of the steered loss, with the trainer's own metrics; its own loss in evaluation."""
        share = inputs.pop(SHARE, None)
        if share is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs: Any = None

        def forward(**arguments: Any) -> Any:
            nonlocal outputs
            outputs = model(**arguments)
            return outputs

        inputs = {name: x for name, x in inputs.items() if name not in COLUMNS}
        super().compute_loss(forward, inputs, False, num_items_in_batch)  # type: ignore[arg-type]
        loss = share(-outputs.log_probs[outputs.label_mask])
        if self.aux_loss_enabled:  # of a mixture of experts: a mean of every micro-batch
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, packing: bool, *rest: Any, **named: Any):
        if not packing or "reference_loss" not in (dataset.column_names or ()):
            return super()._prepare_dataset(dataset, processing_class, args, packing, *rest, **named)
        from trl.data_utils import pack_dataset

        uncut = copy(args)  # packing cuts and shuffles, and would keep but tokens and labels
        uncut.max_length, uncut.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(dataset, processing_class, uncut, False, *rest, **named)
        dataset = dataset.select_columns(["input_ids", "labels", "reference_loss"])
        dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        return pack_dataset(dataset, args.max_length, args.packing_strategy)
