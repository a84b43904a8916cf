"""What the parts of edit flows hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
token logits are computed, first those of insertions and then those of substitutions, ``edits`` that remain
to be made in all rows together.

A row is ``prompt... [BOS] target...``, packed to the left with padding on its right. Slot k is the place
immediately right of column k. Only slots of BOS and of target tokens can be open, that is, receive a token,
and only target tokens that are not given can be editable, that is, deleted or substituted;
:mod:`xlm_editflow.datamodule_editflow` has the rule.

Time is u, the probability that an edit has not been made: 1 at the source, 0 at the text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.modules import PromptCache, Readout, takes_readout
from xlm.modules.records import LossOutput

NUM_OPERATIONS = 3
"""Logits of a column: insert into its slot, delete its token, substitute its token."""


class EditFlowBatch(TypedDict):
    """Rows between source and target, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """x_t: the source with some of the edits made."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive a token."""
    editable: Bool[Tensor, "rows length"]
    """True at tokens that may be deleted or substituted."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    insert_row: Int[Tensor, " insertions"]
    """Row of each slot with tokens to insert. Precomputed in the collator, row by row: nonzero() on a GPU
    forces a synchronisation."""
    insert_column: Int[Tensor, " insertions"]
    """Its column."""
    substitute_row: Int[Tensor, " substitutions"]
    """Row of each token to substitute."""
    substitute_column: Int[Tensor, " substitutions"]
    """Its column."""
    target_row: Int[Tensor, " tokens"]
    """Row of each token that remains to be written: to insert, or to substitute another by."""
    target_column: Int[Tensor, " tokens"]
    """Column of its slot, or of the token that it replaces."""
    target_cell: Int[Tensor, " tokens"]
    """Number of this place among the cells."""
    target_token: Int[Tensor, " tokens"]
    """Its id. A token to insert c times into one slot stands here c times."""
    target_operation: Int[Tensor, " tokens"]
    """Index of its operation among the logits of its column: 0 insert, 2 substitute."""
    delete_row: Int[Tensor, " deletions"]
    """Row of each token to delete."""
    delete_column: Int[Tensor, " deletions"]
    """Its column."""
    num_remaining: Int[Tensor, " rows"]
    """r, the number of edits that remain."""
    num_edits: Int[Tensor, " rows"]
    """D, the number of edits between source and target: those that r counts from."""
    num_missing: Int[Tensor, " rows"]
    """L, the number of target tokens that are not given."""
    time: Float64[Tensor, " rows"]
    """u, in (0, 1)."""
    num_draws: Int[Tensor, ""]
    """K, the number of consecutive rows made from one example."""
    source_is_independent: bool
    """Whether the source was drawn without the target, as the likelihood requires."""


class EditFlowPromptBatch(TypedDict):
    """The source of each row with its prompt, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """Prompt, BOS, fixed target tokens and tokens of the source."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    open_slots: Bool[Tensor, "rows length"]
    """True at columns whose slot may receive a token."""
    editable: Bool[Tensor, "rows length"]
    """True at tokens of the source, which may be deleted or substituted."""
    target_start: Int[Tensor, " rows"]
    """First column right of BOS."""
    limit: Int[Tensor, " rows"]
    """The most target tokens, given ones included: nothing is inserted into a text of this length."""


class EditFlowOutput(NamedTuple):
    """What the network returns: a tuple, so that FSDP and other wrappers find the tensors in it."""

    token_logits: Float[Tensor, "cells vocab"]
    """Scores of each token at the cells, or the output of a readout."""
    operation_logits: Float[Tensor, "rows length operations"]
    """Scores of the operations, see :mod:`xlm_editflow.rates_editflow`."""


@dataclass(frozen=True)
class EditFlowLossOutput(LossOutput):
    """The loss as sums over rows, with counts for :class:`xlm_editflow.EditFlowLossMetrics`.

    ``loss_count`` is the number of rows, the normaliser of every sum here; the terms are ``operation`` and
    ``token``, in nats. The operation term alone may be negative.
    """

    num_remaining: Int[Tensor, ""]
    """Edits that remain in all rows."""
    num_finished: Int[Tensor, ""]
    """Rows in which none does."""
    rate_at_finished: Float[Tensor, ""]
    """Sum over the finished rows of the expected number of edits that remain."""
    rate_at_unfinished: Float[Tensor, ""]
    """The same over the other rows."""


T = TypeVar("T")
EditFlowNetwork = Callable[..., EditFlowOutput]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""
OperationsAt = Callable[[Float64[Tensor, " rows"]], Float[Tensor, "rows length operations"]]
"""Operation logits of the rows at other times, without another evaluation of the trunk."""
ChooseTime = Callable[[OperationsAt], Float64[Tensor, " rows"]]
"""The time at which everything is read, from the operation logits at any times."""


def call_model(
    model: EditFlowNetwork,
    readout: Readout[T],
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    position_ids: Int[Tensor, "rows length"] | None = None,
    *,
    time: Float64[Tensor, " rows"] | ChooseTime,
    insert_at: Int[Tensor, " insertions"],
    substitute_at: Int[Tensor, " substitutions"],
    **prompt: Tensor | PromptCache,
) -> tuple[T, Float[Tensor, "rows length operations"]]:
    """Call the network as the loss and the predictor do; for the arguments see :meth:`EditFlow.forward`.

    ``prompt`` or ``cache`` is given if the prompt does not see the target, and to no other network.

    Returns:
        What the readout makes of the token head at the cells, and operation logits, shape (rows, length, 3).
    """
    named = {"time": time, "insert_at": insert_at, "substitute_at": substitute_at, **prompt}
    if takes_readout(model):
        output: Any = model(input_ids, attention_mask, position_ids, readout=readout, **named)
        return output.token_logits, output.operation_logits
    logits, operation_logits = model(input_ids, attention_mask, position_ids, **named)
    return readout(logits, nn.Identity()), operation_logits


def prompt_of(batch: EditFlowBatch | EditFlowPromptBatch) -> Bool[Tensor, "rows length"]:
    """True at the tokens of the prompts. BOS is none: the operations in its slot depend on the target."""
    column = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return column < batch["target_start"].unsqueeze(1) - 1
