"""What the parts of insertion by reversed deletion hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``drops`` deleted
tokens of all rows together, ``cells`` places whose logits are computed, ``numbers`` 0, 1, ... of tokens that
may be missing, ``edits`` of a trace.

A row is ``[CLS] prompt... [BOS] target...``, packed to the left with padding on its right. Slot k is the
place immediately right of column k. Only slots of BOS and of target tokens can be open, that is, receive a
token; :mod:`xlm_did.datamodule_did` has the rule.

Time is u, the probability that a token is deleted: 0 at the text, 1 where nothing is left of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, takes_readout
from xlm.modules.records import LossOutput


class DIDBatch(TypedDict):
    """Rows with some target tokens deleted, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """y, what is left of each row."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive a token."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    scored_row: Int[Tensor, " cells"]
    """Row of each open slot, of the rows with deleted tokens. Precomputed in the collator, row by row:
    nonzero() on a GPU forces a synchronisation."""
    scored_column: Int[Tensor, " cells"]
    """Column of each of these slots; ascending in a row."""
    num_scored: list[int]
    """Number of these slots in each row, plain numbers: the head's pieces are cut between rows."""
    target_row: Int[Tensor, " drops"]
    """Row of each deleted token; ascending."""
    target_slot: Int[Tensor, " drops"]
    """Column of the nearest surviving token on its left: the slot that it was deleted from."""
    target_token: Int[Tensor, " drops"]
    """Its id. A token deleted c times from one slot stands here c times."""
    num_dropped: Int[Tensor, " rows"]
    """n, the number of tokens deleted from each row."""
    num_missing: Int[Tensor, " rows"]
    """L, the number of target tokens that are not given: those that n counts from."""
    most_missing: Int[Tensor, " rows"]
    """The most tokens that may be missing from y; n is at most this."""
    time: Float64[Tensor, " rows"]
    """u, in (0, 1)."""
    num_draws: Int[Tensor, ""]
    """K, the number of consecutive rows made from one example."""


# Copied from xlm_ilm.types_ilm.ILMPromptBatch
class DIDPromptBatch(TypedDict):
    """The given part of each row, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """Special, prompt and fixed target tokens."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive a token."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    budget: Int[Tensor, " rows"]
    """The most tokens that may be inserted."""


class DIDOutput(NamedTuple):
    """What the network returns: a tuple, so that FSDP and other wrappers find the tensors in it."""

    token_logits: Float[Tensor, "cells vocab"] | Float[Tensor, "rows length vocab"]
    """Scores of inserting each token right of a cell, at the requested cells, or the output of a
    readout."""
    length_logits: Float[Tensor, "rows numbers"]
    """Scores of the numbers of missing tokens, without the time; see
    :func:`xlm_did.missing_did.log_numbers`."""


@dataclass(frozen=True)
class DIDLossOutput(LossOutput):
    """The loss as sums over rows, with counts for :class:`xlm_did.DIDLossMetrics`.

    ``loss_count`` is the number of rows, the normaliser of every sum here; the terms are ``token`` and
    ``length``, in nats. The length term alone may be negative.
    """

    num_dropped: Int[Tensor, ""]
    """Deleted tokens of all rows."""
    num_complete: Int[Tensor, ""]
    """Rows in which nothing is missing but something might be: those that can grow."""
    num_incomplete: Int[Tensor, ""]
    """Rows in which tokens are missing."""
    chance_at_complete: Float[Tensor, ""]
    """Sum of P(nothing is missing) over the complete rows."""
    chance_at_incomplete: Float[Tensor, ""]
    """Sum of P(nothing is missing) over the incomplete rows."""


T = TypeVar("T")
DIDNetwork = Callable[..., DIDOutput]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""
ChooseTime = Callable[[Float[Tensor, "rows numbers"]], Float64[Tensor, " rows"]]
"""The time at which tokens are read, from the logits of the length head."""


def call_model(
    model: DIDNetwork,
    readout: Readout[T],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    position_ids: Int[Tensor, "rows length"] | None = None,
    *,
    time: Float64[Tensor, " rows"] | ChooseTime,
    positions: Int[Tensor, " cells"],
    **prompt: Tensor | PromptCache,
) -> tuple[T, Float[Tensor, "rows numbers"]]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`DID.forward`.

    ``prompt`` or ``cache`` is given if the prompt does not see the target, and to no other network.

    Returns:
        What the readout makes of the token head at the cells, and length logits, shape (rows, numbers).
    """
    named = {"time": time, "positions": positions, **prompt}
    if takes_readout(model):
        output: Any = model(input_ids, attention_mask, position_ids, readout=readout, **named)
        return output.token_logits, output.length_logits
    logits, length_logits = model(input_ids, attention_mask, position_ids, **named)
    return readout(logits, nn.Identity()), length_logits


# Copied from xlm_ilm.types_ilm.prompt_of
def prompt_of(batch: DIDBatch | DIDPromptBatch) -> Bool[Tensor, "rows length"]:
    """True at the tokens of the prompts. CLS and BOS are none: at both the heads read what is missing."""
    column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return (column > 0) & (column < batch["target_start"].unsqueeze(1) - 1)
