"""What the parts of the insertion language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``drops`` dropped
tokens of all rows together, ``cells`` places whose logits are computed, ``edits`` of a trace.

A row is ``[CLS] prompt... [BOS] target...``, packed to the left with padding on its right. Slot k is the
place immediately right of column k. Only slots of BOS and of target tokens can be open, that is, receive a
token; :mod:`xlm_ilm.datamodule_ilm` has the rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, takes_readout
from xlm.modules.records import LossOutput


class ILMBatch(TypedDict):
    """Rows with some target tokens dropped, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """What is left of each row after dropping."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive a token."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    scored_row: Int[Tensor, " cells"]
    """Row of each open slot, of the rows with dropped tokens. Precomputed in the collator, row by row:
    nonzero() on a GPU forces a synchronisation."""
    scored_column: Int[Tensor, " cells"]
    """Column of each of these slots; ascending in a row."""
    num_scored: list[int]
    """Number of these slots in each row, plain numbers: the head's pieces are cut between rows."""
    target_row: Int[Tensor, " drops"]
    """Row of each dropped token; ascending."""
    target_slot: Int[Tensor, " drops"]
    """Column of the nearest surviving token on its left: the slot that it was dropped from."""
    target_token: Int[Tensor, " drops"]
    """Its id. A token dropped c times from one slot stands here c times."""
    num_dropped: Int[Tensor, " rows"]
    """N, the number of tokens dropped from each row."""
    num_missing: Int[Tensor, " rows"]
    """L, the number of target tokens that are not given: those that N counts from."""
    num_draws: Int[Tensor, ""]
    """K, the number of consecutive rows made from one example."""


class ILMPromptBatch(TypedDict):
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


class ILMOutput(NamedTuple):
    """What the network returns: a tuple, so that FSDP and other wrappers find the tensors in it."""

    token_logits: Float[Tensor, "cells vocab"] | Float[Tensor, "rows length vocab"]
    """Scores of inserting each token right of a cell, at the requested cells, or the output of a
    readout."""
    stop_logits: Float[Tensor, "rows classes"]
    """Scores of the classes of the stop head; class 0 means that nothing is missing."""


@dataclass(frozen=True)
class ILMLossOutput(LossOutput):
    """The loss as sums over rows, with counts for :class:`xlm_ilm.ILMLossMetrics`.

    ``loss_count`` is the number of rows, the normaliser of every sum here; the terms are ``token`` and
    ``stop``, weighted as in the loss.
    """

    num_dropped: Int[Tensor, ""]
    """Dropped tokens of all rows."""
    num_complete: Int[Tensor, ""]
    """Rows in which nothing is missing but something might be: those with an open slot."""
    num_incomplete: Int[Tensor, ""]
    """Rows in which tokens are missing."""
    stop_at_complete: Float[Tensor, ""]
    """Sum of P(stop) over the complete rows."""
    stop_at_incomplete: Float[Tensor, ""]
    """Sum of P(stop) over the incomplete rows."""


T = TypeVar("T")
ILMNetwork = Callable[..., ILMOutput]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: ILMNetwork,
    readout: Readout[T],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    position_ids: Int[Tensor, "rows length"] | None = None,
    *,
    positions: Int[Tensor, " cells"],
    **prompt: Tensor | PromptCache,
) -> tuple[T, Float[Tensor, "rows classes"]]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`ILM.forward`.

    ``prompt`` or ``cache`` is given if the prompt does not see the target, and to no other network.

    Returns:
        What the readout makes of the token head at the cells, and stop logits, shape (rows, classes).
    """
    named = {"positions": positions, **prompt}
    if takes_readout(model):
        output: Any = model(input_ids, attention_mask, position_ids, readout=readout, **named)
        return output.token_logits, output.stop_logits
    logits, stop_logits = model(input_ids, attention_mask, position_ids, **named)
    return readout(logits, nn.Identity()), stop_logits


def prompt_of(batch: ILMBatch | ILMPromptBatch) -> Bool[Tensor, "rows length"]:
    """True at the tokens of the prompts. CLS and BOS are none: at both the heads read what is missing."""
    column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return (column > 0) & (column < batch["target_start"].unsqueeze(1) - 1)
