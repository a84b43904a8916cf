"""What the parts of the masked diffusion language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
logits are computed, ``edits`` of a trace.

A row is ``prompt... [BOS] target...`` with padding on its right. The columns of the target are its *cells*:
one for each target token or, with a fixed width, as many as the width, those behind the text holding EOS and
then PAD; see :mod:`xlm_mdlm.layout_mdlm`. A PAD in a cell is an ordinary token, attended to, masked and
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

NUM_LEVELS = 4
"""Intervals of the masked share of a row into which losses are binned in metrics."""
_LEAST_ALPHA = 1e-4


class MDLMBatch(TypedDict):
    """Rows x_t with some cells masked, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """x_t: the rows with MASK at masked cells."""
    attention_mask: Bool[Tensor, "rows length"] | None
    """False at the padding on the right; None if there is none."""
    segment_ids: NotRequired[Int[Tensor, "rows length"]]
    """Of packed blocks: the document of each token, which sees no other; -1 at padding."""
    target_ids: Int[Tensor, "rows length"]
    """x_0: the same rows without masks."""
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
    weight: Float64[Tensor, " rows"]
    """What the summed cross-entropy of a row is multiplied by: -alpha'(t) / (1 - alpha(t)) in training; in
    batches for the likelihood the weight that makes it an unbiased estimate of the bound."""
    noise: NotRequired[Float64[Tensor, " rows"]]
    """-log alpha(t), the input of a network that is conditioned on time. Missing in batches that have no
    time: only networks without such an input can be evaluated on them."""
    num_eligible: Int[Tensor, " rows"]
    """L, the number of cells that can be masked."""
    num_tokens: Int[Tensor, " rows"]
    """Raw target tokens that are not given."""
    models_length: Bool[Tensor, " rows"]
    """Whether the cells have a fixed width, so that the length of the target is predicted too."""
    num_draws: NotRequired[Int[Tensor, ""]]
    """K, the number of consecutive rows made from one example. Missing in training batches, whose times do
    not cover all noise levels and which therefore have no likelihood."""


# Copied from xlm_mlm.types_mlm.MLMPromptBatch
class MDLMPromptBatch(TypedDict):
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
class MDLMLossOutput(LossOutput):
    """The loss as a sum with its normaliser, and counts for :class:`xlm_mdlm.MDLMMetrics`.

    ``loss_sum`` is an estimate of the sum of the rows' bounds in nats, ``loss_count`` the number of cells
    that can be masked, whether they are or not; the one term is ``token``.
    """

    num_masked: Int[Tensor, ""]
    """Masked cells of all rows."""
    num_correct: Int[Tensor, ""]
    """Masked cells whose most probable token is the right one."""
    masked_by_level: Int[Tensor, " levels"]
    """Masked cells by the masked share of their row, in NUM_LEVELS equal intervals of (0, 1]."""
    entropy_by_level: Float[Tensor, " levels"]
    """Their cross-entropies summed, without weights, in nats."""


MDLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: MDLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    noise: Float[Tensor, " rows"] | None,
    *,
    positions: Int[Tensor, " cells"],
    **prompt: Tensor | PromptCache,
) -> Float[Tensor, "cells vocab"]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`MDLMDiT.forward`."""
    return model(input_ids, attention_mask, noise, positions=positions, **prompt)


def score_tokens(
    model: MDLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    noise: Float[Tensor, " rows"] | None,
    *,
    positions: Int[Tensor, " cells"],
    targets: TokenTargets,
    **prompt: Tensor | PromptCache,
) -> TokenScores:
    """Call the network as :func:`call_model` does, but only for -log p of some tokens of the cells."""
    readout = partial(linear_cross_entropy, targets=targets)
    return call_with_readout(model, readout, input_ids, attention_mask, noise, positions=positions, **prompt)


def noise_of_alpha(alpha: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """-log alpha, the total noise: the input of a time-conditioned network.

    The published network has this input. The posteriors depend on t through alpha_t alone, so it says as much
    as t does. It grows without end as alpha falls to 0 and is cut at alpha = 1e-4, where next to everything
    is masked.

    Args:
        alpha: Probabilities that a cell is clean, in [0, 1], of any shape.

    Returns:
        Noise in [0, 9.22], of the same shape.
    """
    # Rounding can make alpha exceed 1 and -log(1) is -0: neither sign is valid.
    return -alpha.clamp(_LEAST_ALPHA, 1.0).log() + 0.0


# Copied from xlm_mlm.types_mlm.prompt_of
def prompt_of(
    input_ids: Int[Tensor, "rows length"], prompt_length: Int[Tensor, " rows"]
) -> Bool[Tensor, "rows length"]:
    """True at the columns left of the cells: prompt and BOS."""
    column = torch.arange(input_ids.shape[1], device=input_ids.device)
    return column < prompt_length.unsqueeze(1)
