"""A loss that is a sum over cells, of any function of a cell's logits, without the table of logits.

:func:`xlm.modules.linear_cross_entropy` scores a few tokens of each cell. A loss that depends on the
probabilities of all tokens, such as the bound of uniform-state diffusion, goes through the same buffer here:
the logits of a piece of the cells are made, the loss replaces them by their gradients, and these leave behind
their share of the gradients of the weights before the next piece is made.
"""

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from xlm.modules.compiling import uncompiled
from xlm.modules.sampling import at_least_float32
from xlm.modules.token_head import HeadGradients, aligned_table, compute_dtype, is_linear

_LOGITS_AT_ONCE = 2**21
"""Logits in a piece: 8 MiB in float32, since the loss may need some tables of this size beside it."""


class CellLoss(Protocol):
    """A loss that is a sum over cells; one call for each piece of consecutive cells."""

    def __call__(
        self, logits: Float[Tensor, "piece vocab"], cells: slice, /, *, differentiates: bool
    ) -> Float64[Tensor, " piece"]:
        """Losses of some cells.

        Args:
            logits: In float32 at least, shape (piece, vocab). They may be overwritten, and if
                ``differentiates`` they are: with the gradient of each loss by its logits.
            cells: Which cells they are.
            differentiates: Whether the gradient is needed.
        """
        ...


class CellLosses(NamedTuple):
    """What became of a :class:`CellLoss`."""

    loss: Float[Tensor, ""]
    """The sum, in float32 at least: the only part that has a gradient."""
    of_cells: Float64[Tensor, " cells"]
    """Its summands."""


def linear_cell_loss(
    hidden: Float[Tensor, "cells d_model"], head: nn.Module, cell_loss: CellLoss
) -> CellLosses:
    """Sum a loss of the logits of each cell.

    The logits are made as a table where the head is more than a linear layer, and in float16, whose gradients
    need the scaling of the whole loss to be representable.

    Args:
        hidden: Hidden states of the cells, shape (cells, d_model).
        head: The last layer, d_model to the vocabulary; the identity if ``hidden`` are logits.
        cell_loss: The loss.

    Raises:
        RuntimeError: If the gradient is differentiated again, or taken a second time.
    """
    if is_linear(head) and compute_dtype(hidden) != torch.float16:
        return _in_pieces(hidden, head.weight, head.bias, cell_loss)
    return _in_pieces(head(hidden), None, None, cell_loss)


@uncompiled  # a loop over pieces whose number differs from batch to batch
def _in_pieces(hidden: Tensor, weight: Tensor | None, bias: Tensor | None, loss: CellLoss) -> CellLosses:
    needs_gradient = hidden.requires_grad or (weight is not None and weight.requires_grad)
    differentiates = torch.is_grad_enabled() and needs_gradient
    made: Any = _SumOverCells.apply(hidden, weight, bias, loss, differentiates)
    return CellLosses(*made)


class _SumOverCells(torch.autograd.Function):
    """The gradients are made in the forward pass; the backward pass multiplies them by one number."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        loss: CellLoss,
        differentiates: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.gradients = None
        ctx.dtypes = hidden.dtype, hidden.dtype if weight is None else weight.dtype
        of_cells: list[Tensor] = []
        if weight is None:
            wide = at_least_float32(hidden.detach())
            gradient = torch.empty_like(wide) if differentiates else None
            for piece in _pieces(len(wide), wide.shape[1]):
                logits = wide[piece].clone()
                of_cells.append(loss(logits, piece, differentiates=differentiates))
                if gradient is not None:
                    gradient[piece] = logits
            if gradient is not None:
                ctx.gradients = gradient, None, None
        else:
            dtype = compute_dtype(hidden)
            states, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
            pieces = _pieces(len(states), len(matrix))
            buffer = aligned_table(states, pieces[0].stop if pieces else 0, len(matrix))
            gradients = HeadGradients(states, matrix, bias) if differentiates else None
            for piece in pieces:
                table = buffer[: piece.stop - piece.start]
                logits = at_least_float32(torch.mm(states[piece], matrix.T, out=table))
                if bias is not None:
                    logits += bias
                of_cells.append(loss(logits, piece, differentiates=differentiates))
                if gradients is not None:
                    gradients.add(logits, piece)
            if gradients is not None:
                ctx.gradients = gradients.hidden, gradients.weight, gradients.bias
        losses = torch.cat(of_cells) if of_cells else hidden.new_zeros(0, dtype=torch.float64)
        ctx.mark_non_differentiable(losses)
        return losses.sum().to(torch.promote_types(hidden.dtype, torch.float32)), losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "linear_cell_loss makes its gradients in the forward pass, so they cannot be differentiated "
                "again (create_graph=True)"
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cell_loss keeps its gradients for one backward pass (retain_graph=True is no option)"
            )
        factor = grad_outputs[0]
        ctx.gradients, (of_hidden, of_weight, of_bias) = None, ctx.gradients
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            (of_hidden * factor).to(hidden_dtype),
            None if of_weight is None else of_weight.mul_(factor).to(weight_dtype),
            None if of_bias is None else of_bias.mul_(factor).to(weight_dtype),
            None,
            None,
        )


def _pieces(num_cells: int, vocab_size: int) -> list[slice]:
    size = max(_LOGITS_AT_ONCE // max(vocab_size, 1), 1)
    return [slice(low, min(low + size, num_cells)) for low in range(0, num_cells, size)]
