"""What the parts of the block diffusion language model hand to each other.

Axes: ``rows`` of a batch, ``cells`` columns of the longest target, ``past`` columns of the clean stream,
``masked`` cells of all rows, ``vocab`` token ids.

A row is ``prompt... [BOS] target...``. The columns of the target are its *cells*, of which D after D form a
*block*; see :mod:`xlm_bd3lm.layout_bd3lm`. A PAD in a cell is an ordinary token, attended to, masked and
predicted; the padding on the right of a row is none of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NotRequired, TypedDict

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import (
    PiecewiseMask,
    TokenScores,
    TokenTargets,
    call_with_readout,
    linear_cross_entropy,
    takes_piecewise_mask,
)
from xlm.modules.records import LossOutput
from xlm_bd3lm.streams_bd3lm import Span

NUM_LEVELS = 4
"""Intervals of the masked share of a block into which losses are binned in metrics."""


class BD3LMBatch(TypedDict):
    """Rows [x_t ; x_0]: noisy cells, and the clean tokens that later blocks see."""

    input_ids: Int[Tensor, "rows cells"]
    """x_t: the cells with MASK at masked ones."""
    target_ids: Int[Tensor, "rows cells"]
    """x_0: the same cells without masks."""
    cell_blocks: Int[Tensor, "rows cells"]
    """Number of each cell's block, from 1; -1 at the padding on the right."""
    clean_ids: Int[Tensor, "rows past"]
    """Prompt, BOS and the cells of all blocks but the row's last, which no other block sees."""
    clean_blocks: Int[Tensor, "rows past"]
    """Their blocks: 0 at prompt and BOS, -1 at padding."""
    spans: NotRequired[list[Span]]
    """Pieces in which attention is computed, of long rows. Plain numbers, as they are shapes."""
    prompt_length: Int[Tensor, " rows"]
    """Tokens left of the cells: prompt and BOS."""
    cell_segments: NotRequired[Int[Tensor, "rows cells"]]
    """Of packed blocks: the document of each cell, which sees no other; -1 at padding."""
    clean_segments: NotRequired[Int[Tensor, "rows past"]]
    """The same of the clean tokens."""
    masked: Bool[Tensor, "rows cells"]
    """True at masked cells."""
    masked_row: Int[Tensor, " masked"]
    """Row of each masked cell. Precomputed in the collator: nonzero() on a GPU forces a synchronisation."""
    masked_column: Int[Tensor, " masked"]
    """Column of each masked cell."""
    masked_level: Int[Tensor, " masked"]
    """The masked share of its block, as a number of NUM_LEVELS equal intervals of (0, 1]."""
    may_end: Bool[Tensor, "rows cells"]
    """True at cells where EOS is possible."""
    may_pad: Bool[Tensor, "rows cells"]
    """True at cells where PAD is possible: those where EOS is, but for the first of a block."""
    weight: Float64[Tensor, " masked"]
    """What the cross-entropy of each masked cell is multiplied by."""
    num_eligible: Int[Tensor, " rows"]
    """The number of cells that can be masked."""
    num_tokens: Int[Tensor, " rows"]
    """Raw target tokens that are not given."""
    models_length: Bool[Tensor, " rows"]
    """Whether the text ends with an EOS, so that the length of the target is predicted too."""
    num_draws: NotRequired[Int[Tensor, ""]]
    """K, the number of draws of each example. Missing in training batches, which have no likelihood."""
    draw_of_row: NotRequired[Int[Tensor, " rows"]]
    """Number of the draw that a row is part of, those of an example in succession."""
    is_exact: NotRequired[Bool[Tensor, ""]]
    """Whether the blocks have one cell each, so that the model is autoregressive."""


class BD3LMPromptBatch(TypedDict):
    """The given part of each row and masks at the other cells, for generation."""

    prompt_ids: Int[Tensor, "rows prompt"]
    """Prompt and BOS, padded on the right."""
    prompt_mask: Bool[Tensor, "rows prompt"]
    """False at that padding."""
    input_ids: Int[Tensor, "rows cells"]
    """Given target tokens, and MASK at the other cells."""
    attention_mask: Bool[Tensor, "rows cells"]
    """False at the padding on the right."""
    masked: Bool[Tensor, "rows cells"]
    """True at cells to fill."""
    may_end: Bool[Tensor, "rows cells"]
    """True at cells where EOS is possible, and ends the text."""
    target_start: Int[Tensor, " rows"]
    """First cell: 0."""
    max_length: Int[Tensor, " rows"]
    """Where a text without end is cut: the limit may lie inside a block, which is written as a whole."""


# Copied from xlm_mdlm.types_mdlm.MDLMLossOutput
@dataclass(frozen=True)
class BD3LMLossOutput(LossOutput):
    """The loss as a sum with its normaliser, and counts for :class:`xlm_bd3lm.BD3LMMetrics`.

    ``loss_sum`` is an estimate of the sum of the rows' bounds in nats, ``loss_count`` the number of cells
    that can be masked, whether they are or not; the one term is ``token``. With clipped noise levels it is no
    bound.
    """

    num_masked: Int[Tensor, ""]
    """Masked cells of all rows."""
    num_correct: Int[Tensor, ""]
    """Masked cells whose most probable token is the right one."""
    masked_by_level: Int[Tensor, " levels"]
    """Masked cells by the masked share of their block, in NUM_LEVELS equal intervals of (0, 1]."""
    entropy_by_level: Float[Tensor, " levels"]
    """Their cross-entropies summed, without weights, in nats."""


BD3LMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def score_tokens(
    model: BD3LMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length length"] | PiecewiseMask,
    position_ids: Int[Tensor, "rows length"],
    *,
    positions: Int[Tensor, " masked"],
    targets: TokenTargets,
) -> TokenScores:
    """Call the network for -log p of some tokens; for the arguments see :meth:`BD3LMDiT.forward`."""
    if isinstance(attention_mask, PiecewiseMask) and not takes_piecewise_mask(model):
        attention_mask = attention_mask.dense()
    readout = partial(linear_cross_entropy, targets=targets)
    return call_with_readout(model, readout, input_ids, attention_mask, position_ids, positions=positions)
