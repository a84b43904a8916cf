"""What the parts of the masked language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
logits are computed, ``edits`` of a trace.

A row is ``prompt... [BOS] target...`` with padding on its right. The columns of the target are its *cells*:
one for each target token or, with a fixed width, as many as the width, those behind the text holding EOS and
then PAD; see :mod:`xlm_mlm.layout_mlm`. A PAD in a cell is an ordinary token, attended to, masked and
predicted; the padding on the right of a row is none of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import (
    PromptCache,
    TokenScores,
    TokenTargets,
    call_with_readout,
    linear_cross_entropy,
)
from xlm.modules.records import LossOutput


class MLMBatch(TypedDict):
    """Rows with some cells masked, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """The rows with MASK at masked cells."""
    attention_mask: Bool[Tensor, "rows length"] | None
    """False at the padding on the right; None if there is none."""
    segment_ids: NotRequired[Int[Tensor, "rows length"]]
    """Of packed blocks: the document of each token, which sees no other; -1 at padding."""
    target_ids: Int[Tensor, "rows length"]
    """The same rows without masks."""
    masked: Bool[Tensor, "rows length"]
    """True at masked cells."""
    masked_row: Int[Tensor, " masked"]
    """Row of each masked cell. Precomputed in the collator: nonzero() on a GPU forces a synchronisation."""
    masked_column: Int[Tensor, " masked"]
    """Column of each masked cell."""
    may_end: Bool[Tensor, "rows length"]
    """True at cells where EOS and PAD are possible tokens."""
    prompt_length: Int[Tensor, " rows"]
    """Columns left of the cells: prompt and BOS."""
    num_eligible: Int[Tensor, " rows"]
    """L, the number of cells that can be masked."""
    likelihood_weight: NotRequired[Float64[Tensor, " rows"]]
    """What the summed cross-entropy of a row is multiplied by to estimate the likelihood bound without bias.
    Missing if the mask rate is fixed: such rows have no bound."""
    num_tokens: Int[Tensor, " rows"]
    """Raw target tokens that are not given."""
    models_length: Bool[Tensor, " rows"]
    """Whether the cells have a fixed width, so that the length of the target is predicted too."""
    num_draws: Int[Tensor, ""]
    """K, the number of consecutive rows made from one example."""


class MLMPromptBatch(TypedDict):
    """The given part of each row and masks at the other cells, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """Prompt, BOS, given target tokens, and MASK at the other cells."""
    attention_mask: Bool[Tensor, "rows length"]
    """False at the padding on the right."""
    masked: Bool[Tensor, "rows length"]
    """True at cells to fill."""
    may_end: Bool[Tensor, "rows length"]
    """True at cells where EOS and PAD are possible tokens, and end the text."""
    target_start: Int[Tensor, " rows"]
    """First cell: the column right of BOS."""


@dataclass(frozen=True)
class MLMLossOutput(LossOutput):
    """The loss as a sum with its normaliser, and counts for :class:`xlm_mlm.MLMMetrics`.

    ``loss_count`` is the number of masked cells, or of rows with cells that can be masked; the one term is
    ``token``.
    """

    num_masked: Int[Tensor, ""]
    """Masked cells of all rows."""
    num_eligible: Int[Tensor, ""]
    """Cells of all rows that could have been masked."""
    num_correct: Int[Tensor, ""]
    """Masked cells whose most probable token is the right one."""


MLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: MLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    *,
    positions: Int[Tensor, " cells"],
    **prompt: Tensor | PromptCache,
) -> Float[Tensor, "cells vocab"]:
    """Call the network through ``forward``, see :meth:`xlm_mlm.MLM.forward`."""
    return model(input_ids, attention_mask, positions=positions, **prompt)


def score_tokens(
    model: MLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    *,
    positions: Int[Tensor, " cells"],
    targets: TokenTargets,
    **prompt: Tensor | PromptCache,
) -> TokenScores:
    """Call the network as :func:`call_model` does, but only for -log p of some tokens of the cells."""
    readout = partial(linear_cross_entropy, targets=targets)
    return call_with_readout(model, readout, input_ids, attention_mask, positions=positions, **prompt)


def prompt_of(
    input_ids: Int[Tensor, "rows length"], prompt_length: Int[Tensor, " rows"]
) -> Bool[Tensor, "rows length"]:
    """True at the columns left of the cells: prompt and BOS."""
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    return column < prompt_length.unsqueeze(1)
