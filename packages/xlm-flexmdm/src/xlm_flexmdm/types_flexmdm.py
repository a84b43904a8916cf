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
from typing import Any, NamedTuple, TypedDict, TypeVar

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import Readout, takes_readout
from xlm.modules.records import Likelihood, LossOutput


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


# Copied from xlm_ilm.types_ilm.ILMPromptBatch
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
    """Scores of each token at the requested cells, or the output of a readout."""
    expected_gaps: Float[Tensor, " slots"]
    """g, the expected number of missing tokens in the requested slots, at least 0."""
    gap_logits: Float[Tensor, "slots classes"] | None
    """Scores of the gap lengths 0, 1, ..., whose mean is g; None for a head without a distribution."""


@dataclass(frozen=True)
class FlexMDMLossOutput(LossOutput):
    """The loss as sums over rows, with counts for :class:`xlm_flexmdm.FlexMDMMetrics`.

    ``loss_count`` is the number of target tokens that are not given: the loss is in nats per token. The terms
    are ``unmasking`` and ``insertion``, weighted as in the loss.
    """

    num_masked: Int[Tensor, ""]
    """Masked tokens of all rows."""
    num_correct: Int[Tensor, ""]
    """Masked tokens whose most probable token is the clean one."""


@dataclass(frozen=True)
class FlexMDMLikelihood(Likelihood):
    """Estimate of an upper bound of -log p(missing tokens and their number | given tokens)."""

    nll_published: Float64[Tensor, " examples"]
    """The looser bound of the paper from the same draws."""


T = TypeVar("T")
FlexMDMNetwork = Callable[..., FlexMDMOutput]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: FlexMDMNetwork,
    readout: Readout[T],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    time: Float64[Tensor, " rows"],
    missing_chance: Float64[Tensor, " rows"],
    *,
    token_positions: Int[Tensor, " cells"],
    slot_positions: Int[Tensor, " slots"],
) -> tuple[T, FlexMDMOutput]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`FlexMDM.forward`.

    Returns:
        What the readout makes of the token head at the cells, and the output of the network with the gaps.
    """
    named = {"readout": readout} if takes_readout(model) else {}
    output: Any = model(
        input_ids,
        time,
        missing_chance,
        attention_mask,
        token_positions=token_positions,
        slot_positions=slot_positions,
        **named,
    )
    return output.token_logits if named else readout(output.token_logits, nn.Identity()), output
