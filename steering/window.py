"""Weights first, gradients later: a window of losses that is differentiated in parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steering.arrange import tensor_of
from steering.contrastive.pairs import Pairs, is_pairs, leaves_of, with_leaves
from steering.distributed import fail_on_all_ranks
from steering.errors import UserError
from steering.steered import Steered


@dataclass(frozen=True)
class Window:
    """A window of samples whose weights are settled, so that micro-batches of any size can be differentiated.

    Attributes:
        steered: weights and figures of the whole window, and its loss as a number.
        gradients: of that loss by the losses of the window, shaped like them; by left and right features and, where
            it is learned, by the scale, for Pairs.
    """

    steered: Steered
    gradients: tuple[Tensor, ...]

    def loss(self, losses: Tensor | Pairs, index: Tensor | slice) -> Tensor:
        """What a micro-batch adds to the loss, a scalar to differentiate.

        The gradients of all micro-batches add up to that of the whole window. The values add up to the weighted loss
        without the reference's part, for Pairs to a number without a meaning.

        Args:
            losses: of the micro-batch, with gradient, in the form that the window was given in.
            index: where they are in the window: samples ``[k]`` or a slice; entries if the window was given with rows.
        """
        parts = leaves_of(losses if is_pairs(losses) else tensor_of(losses, "losses"))
        if len(parts) != len(self.gradients):
            raise UserError("a micro-batch is given in the form of its window: losses, or Pairs with a scale alike")
        total = torch.zeros((), device=parts[0].device)
        for part, gradient in zip(parts, self.gradients, strict=True):
            if gradient.dim():
                gradient = gradient[index]
            else:
                gradient = gradient * len(parts[0]) / len(self.gradients[0])  # of a scalar, in equal shares
            if gradient.shape != part.shape:
                raise UserError(
                    f"a micro-batch has the losses of its index, {list(gradient.shape)}, got {list(part.shape)}"
                )
            total = total + (gradient * part.to(gradient)).masked_fill(gradient == 0, 0).sum()
        return total


def window(losses: Tensor | Pairs, steer: Callable[[Tensor | Pairs], Steered]) -> Window:
    """Steers losses that have no gradient of their own, and keeps the gradient that they would get.

    Args:
        losses: of the whole window.
        steer: gives the Steered of losses with a gradient.
    """
    losses = fail_on_all_ranks(lambda: losses if is_pairs(losses) else tensor_of(losses, "losses"))
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [_with_gradient(leaf) for leaf in leaves_of(losses)]
        steered = steer(with_leaves(losses, leaves))
        gradients = torch.autograd.grad(steered.loss, leaves, allow_unused=True, materialize_grads=True)
    return Window(replace(steered, loss=steered.loss.detach()), gradients)


def _with_gradient(leaf: Tensor) -> Tensor:
    """The same numbers, which may come from inference mode or be whole, as a leaf."""
    leaf = leaf.detach()
    return (leaf.clone() if leaf.is_floating_point() else leaf.float()).requires_grad_()
