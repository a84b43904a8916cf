"""What the parts of FlexMDM hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``target`` tokens of the longest clean
target, ``vocab`` token ids, ``cells`` and ``slots`` places whose outputs are computed, ``classes`` gap
lengths, ``edits`` of a trace.

A row is ``[prompt...] [BOS] [target...]``, packed to the left with padding on its right. Slot k is the place
immediately right of column k, so a target of n tokens has n + 1 slots: that of BOS, left of its first token,
and one right of each token. No further column is needed for the last of them. Only open slots can receive
tokens; :mod:`xlm_flexmdm.datamodule_flexmdm` has the rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, TypedDict

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor


class FlexMDMExample(TypedDict):
    """One row of data: token ids without special tokens.

    The keys present define the task: only ``target_ids`` is language modelling, ``prompt_ids`` besides it
    prefix to suffix, ``fixed`` infilling, and neither of them unconditional generation.
    """

    seed: int
    """Source of all randomness of the row (int64)."""
    place: NotRequired[int]
    """Place of the row in the training stream of all processes; the times of neighbours are stratified."""
    prompt_ids: NotRequired[Int[Tensor, " prompt"]]
    """Given text left of the target."""
    target_ids: NotRequired[Int[Tensor, " target"]]
    """The text to model or to generate."""
    fixed: NotRequired[Bool[Tensor, " target"]]
    """True at target tokens that are given (infilling)."""
    segment_ids: NotRequired[Int[Tensor, " target"]]
    """Of a block packed with several documents; the collators refuse it."""


class FlexMDMBatch(TypedDict):
    """Rows x_t at random times with the clean targets x_1, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """x_t: what is present of each row, MASK at masked tokens."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    given: Bool[Tensor, "rows length"]
    """True at prompt, BOS and fixed tokens."""
    masked: Bool[Tensor, "rows length"]
    """True at masked tokens."""
    masked_row: Int[Tensor, " masked"]
    """Row of each masked token. Precomputed in the collator: nonzero() on a GPU forces a synchronisation."""
    masked_column: Int[Tensor, " masked"]
    """Its column."""
    clean_ids: Int[Tensor, "rows length"]
    """The clean token of each column."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive tokens."""
    slot_row: Int[Tensor, " slots"]
    """Row of each of these columns, listed for the same reason."""
    slot_column: Int[Tensor, " slots"]
    """Its number."""
    gaps: Int[Tensor, "rows length"]
    """Tokens of x_1 that are missing in the slot of each column."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    target_ids: Int[Tensor, "rows target"]
    """The target of x_1, padded on the right."""
    target_lengths: Int[Tensor, " rows"]
    """Its number of tokens."""
    target_fixed: Bool[Tensor, "rows target"]
    """True at its fixed tokens."""
    num_missing: Int[Tensor, " rows"]
    """Target tokens that are not given."""
    time: Float64[Tensor, " rows"]
    """Time input of the network."""
    missing_chance: Float64[Tensor, " rows"]
    """1 - alpha(t), the probability that a token is not present yet."""
    unmasking_weight: Float64[Tensor, " rows"]
    """beta'(t) / (1 - beta(t)), divided by the density that t was drawn with."""
    insertion_weight: Float64[Tensor, " rows"]
    """alpha'(t) / (1 - alpha(t)), divided by the density that t was drawn with."""
    num_draws: Int[Tensor, ""]
    """K, the number of consecutive rows made from one example."""
    is_complete: Bool[Tensor, ""]
    """Whether alpha and beta run from 0 to 1, without which there is no likelihood."""


class FlexMDMPromptBatch(TypedDict):
    """The given part of each row, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """Prompt, BOS and fixed target tokens."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive tokens."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    budget: Int[Tensor, " rows"]
    """The most tokens that may be inserted."""


class FlexMDMOutput(NamedTuple):
    """What the network returns: a tuple, so that FSDP and other wrappers find the tensors in it."""

    token_logits: Float[Tensor, "cells vocab"]
    """Scores of each token at the cells that were asked for."""
    expected_gaps: Float[Tensor, " slots"]
    """g, the expected number of missing tokens in the slots that were asked for, at least 0."""
    gap_logits: Float[Tensor, "slots classes"] | None
    """Scores of the gap lengths 0, 1, ..., whose mean is g; None for a head without a distribution."""


@dataclass(frozen=True)
class FlexMDMLossOutput:
    """The loss as sums over rows, with counts for :class:`xlm_flexmdm.FlexMDMMetrics`."""

    loss_sum: Float[Tensor, ""]
    """What is differentiated: the sum of the terms."""
    loss_count: Int[Tensor, ""]
    """Target tokens that are not given, the normaliser: the loss is in nats per token."""
    terms: dict[str, Float[Tensor, ""]]
    """``unmasking`` and ``insertion``, weighted as in the loss."""
    num_masked: Int[Tensor, ""]
    """Masked tokens of all rows."""
    num_correct: Int[Tensor, ""]
    """Masked tokens whose most probable token is the clean one."""


@dataclass(frozen=True)
class FlexMDMLikelihood:
    """Estimate of an upper bound of -log p(missing tokens and their number | given tokens)."""

    nll: Float64[Tensor, " examples"]
    """Nats per example, averaged over the draws."""
    num_tokens: Int[Tensor, " examples"]
    """Target tokens that are scored, i.e. that are not given."""
    nll_kind: Literal["exact", "bound"]
    """Whether the expectation of ``nll`` is the value itself or an upper bound of it."""
    num_draws: int
    """Draws averaged for each example."""
    models_length: bool
    """Whether the number of tokens is part of what is scored."""
    nll_published: Float64[Tensor, " examples"]
    """The looser bound of the paper from the same draws."""


@dataclass(frozen=True)
class FlexMDMTrace:
    """How the targets came to be: one entry per edit, in order.

    A token comes in two edits: MASK is inserted, and later written over. Replaying the edits of a row from
    the empty sequence gives its ids.
    """

    step: Int[Tensor, " edits"]
    """0 for given tokens, then the step of the sampler, from 1."""
    row: Int[Tensor, " edits"]
    """Row of the batch."""
    operation: Int[Tensor, " edits"]
    """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``."""
    position: Int[Tensor, " edits"]
    """Gap (0 to the current length) or position in the target as it is at that moment."""
    token: Int[Tensor, " edits"]
    """Token id."""


@dataclass(frozen=True)
class FlexMDMPrediction:
    """Generated targets: what stands right of BOS, given tokens of infilling included."""

    ids: Int[Tensor, "rows width"]
    """Target tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""
    nfe: Int[Tensor, " rows"]
    """Evaluations of the network that the row took part in."""
    trace: FlexMDMTrace | None
    """The edits, when asked for."""


@dataclass(frozen=True)
class FlexMDMTracedPrediction(FlexMDMPrediction):
    """What ``trace=True`` gives: the targets, and how they came to be."""

    trace: FlexMDMTrace
    """The edits."""


FlexMDMNetwork = Callable[..., FlexMDMOutput]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: FlexMDMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    time: Float64[Tensor, " rows"],
    missing_chance: Float64[Tensor, " rows"],
    *,
    token_positions: Int[Tensor, " cells"],
    slot_positions: Int[Tensor, " slots"],
) -> FlexMDMOutput:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`FlexMDM.forward`."""
    return model(
        input_ids,
        time,
        missing_chance,
        attention_mask,
        token_positions=token_positions,
        slot_positions=slot_positions,
    )
