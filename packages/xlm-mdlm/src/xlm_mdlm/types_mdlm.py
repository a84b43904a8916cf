"""What the parts of the masked diffusion language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
logits are computed, ``edits`` of a trace.

A row is ``prompt... [BOS] target...`` with padding on its right. The columns of the target are its *cells*:
one for each target token or, with a fixed width, as many as the width, those behind the text holding EOS and
then PAD; see :mod:`xlm_mdlm.datamodule_mdlm`. A PAD in a cell is an ordinary token, attended to, masked and
predicted; the padding on the right of a row is none of these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

NUM_LEVELS = 4
"""Intervals of the masked share of a row into which losses are binned in metrics."""


class MDLMExample(TypedDict):
    """One row of data: token ids without special tokens.

    The keys present define the task: only ``target_ids`` is language modelling, ``prompt_ids`` besides it
    prefix to suffix, ``fixed`` infilling, and neither of them unconditional generation.
    """

    seed: int
    """Source of all randomness of the row (int64)."""
    place: NotRequired[int]
    """Place of the row in the training stream of all processes; stratified times follow it."""
    prompt_ids: NotRequired[Int[Tensor, " prompt"]]
    """Given text left of the target."""
    target_ids: NotRequired[Int[Tensor, " target"]]
    """The text to model or to generate."""
    fixed: NotRequired[Bool[Tensor, " target"]]
    """True at target tokens that are given (infilling)."""
    segment_ids: NotRequired[Int[Tensor, " target"]]
    """Of a block packed with several documents: number of the document of each token, from 0."""


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
class MDLMLossOutput:
    """The loss as a sum with its normaliser, and counts for :class:`xlm_mdlm.MDLMMetrics`."""

    loss_sum: Float[Tensor, ""]
    """What is differentiated: an estimate of the sum of the rows' bounds, in nats."""
    loss_count: Int[Tensor, ""]
    """All cells that can be masked, whether they are or not."""
    terms: dict[str, Float[Tensor, ""]]
    """``token``, the whole loss."""
    num_masked: Int[Tensor, ""]
    """Masked cells of all rows."""
    num_correct: Int[Tensor, ""]
    """Masked cells whose most probable token is the right one."""
    masked_by_level: Int[Tensor, " levels"]
    """Masked cells by the masked share of their row, in NUM_LEVELS equal intervals of (0, 1]."""
    entropy_by_level: Float[Tensor, " levels"]
    """Their cross-entropies summed, without weights, in nats."""


@dataclass(frozen=True)
class MDLMLikelihood:
    """Estimate of an upper bound of -log p(cells that are not given | given tokens)."""

    nll: Float64[Tensor, " examples"]
    """Nats per example, averaged over the draws."""
    num_tokens: Int[Tensor, " examples"]
    """Raw target tokens that are not given."""
    nll_kind: Literal["exact", "bound"]
    """Whether the expectation of ``nll`` is the value itself or an upper bound of it."""
    num_draws: int
    """Draws averaged for each example."""
    models_length: bool
    """Whether the length of the target is part of what is scored."""


@dataclass(frozen=True)
class MDLMTrace:
    """How the targets came to be: one entry per edit, in order.

    Replaying the edits of a row from the empty sequence gives its ids. Step 0 inserts the cells of the final
    text from left to right, given tokens as they are and MASK for the others; the steps after it write tokens
    over masks and, with remasking, MASK over tokens. Cells behind the end of the final text do not appear.
    """

    step: Int[Tensor, " edits"]
    """0 for the start, then the call of the network, from 1, that led to the edit or was the last before
    it."""
    row: Int[Tensor, " edits"]
    """Row of the batch."""
    operation: Int[Tensor, " edits"]
    """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``."""
    position: Int[Tensor, " edits"]
    """Place in the target."""
    token: Int[Tensor, " edits"]
    """Token id."""


@dataclass(frozen=True)
class MDLMPrediction:
    """Generated targets: what stands right of BOS, given tokens of infilling included, up to the end."""

    ids: Int[Tensor, "rows width"]
    """Target tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""
    nfe: Int[Tensor, " rows"]
    """Evaluations of the network that the row took part in."""
    trace: MDLMTrace | None
    """The edits, when asked for."""


@dataclass(frozen=True)
class MDLMTracedPrediction(MDLMPrediction):
    """What ``trace=True`` gives: the targets, and how they came to be."""

    trace: MDLMTrace
    """The edits."""


MDLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: MDLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    noise: Float[Tensor, " rows"] | None,
    *,
    positions: Int[Tensor, " cells"],
) -> Float[Tensor, "cells vocab"]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`MDLMDiT.forward`."""
    return model(input_ids, attention_mask, noise, positions=positions)
