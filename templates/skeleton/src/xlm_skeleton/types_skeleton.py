"""What the parts of the model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
logits are computed, ``edits`` of a trace.
"""

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn


class SkeletonExample(TypedDict):
    """One row of data: token ids without special tokens."""

    seed: int
    """Source of all randomness of the row (int64)."""
    place: NotRequired[int]
    """Place of the row in the training stream of all processes."""
    prompt_ids: NotRequired[Int[Tensor, " prompt"]]
    """Given text left of the target."""
    target_ids: NotRequired[Int[Tensor, " target"]]
    """The text to model or to generate."""
    fixed: NotRequired[Bool[Tensor, " target"]]
    """True at target tokens that are given (infilling)."""


class SkeletonBatch(TypedDict):
    """Rows ``prompt... target...`` with some target tokens masked, for the loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """The rows with MASK at masked cells."""
    attention_mask: Bool[Tensor, "rows length"]
    """False at the padding on the right."""
    target_ids: Int[Tensor, "rows length"]
    """The same rows without masks."""
    masked_row: Int[Tensor, " cells"]
    """Row of each masked cell. Listed beforehand: the host waits for a device that has to find them."""
    masked_column: Int[Tensor, " cells"]
    """Column of each masked cell."""
    num_missing: Int[Tensor, " rows"]
    """L, target tokens that are not given: those that can be masked."""


class SkeletonPromptBatch(TypedDict):
    """What is given of each row, and MASK at the target tokens that are not, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """The rows with MASK at every target token that is not given."""
    attention_mask: Bool[Tensor, "rows length"]
    """False at the padding on the right."""
    masked: Bool[Tensor, "rows length"]
    """True at cells to fill."""
    target_start: Int[Tensor, " rows"]
    """Column of the first target token."""


@dataclass(frozen=True)
class SkeletonLossOutput:
    """The loss as a sum with its normaliser, and a count for :class:`xlm_skeleton.SkeletonMetrics`."""

    loss_sum: Float[Tensor, ""]
    """Cross-entropy summed over masked cells, in nats: what is differentiated."""
    loss_count: Int[Tensor, ""]
    """Masked cells."""
    terms: dict[str, Float[Tensor, ""]]
    """``token``, the whole loss."""
    num_correct: Int[Tensor, ""]
    """Masked cells whose most probable token is the right one."""


@dataclass(frozen=True)
class SkeletonLikelihood:
    """Estimate of an upper bound of -log p(target tokens that are not given | the others, the length)."""

    nll: Float64[Tensor, " examples"]
    """Nats per example."""
    num_tokens: Int[Tensor, " examples"]
    """Target tokens that are not given."""
    nll_kind: Literal["exact", "bound"] = "bound"
    """The expectation of ``nll`` is an upper bound."""
    num_draws: int = 1
    """Draws averaged for each example."""
    models_length: bool = False
    """The length of the target is given, not scored."""


@dataclass(frozen=True)
class SkeletonTrace:
    """How the targets came to be: one entry per edit, in order."""

    step: Int[Tensor, " edits"]
    """0 for the start, then the evaluation of the network, from 1, that led to the edit."""
    row: Int[Tensor, " edits"]
    """Row of the batch."""
    operation: Int[Tensor, " edits"]
    """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``."""
    position: Int[Tensor, " edits"]
    """Place in the target."""
    token: Int[Tensor, " edits"]
    """Token id."""


@dataclass(frozen=True)
class SkeletonPrediction:
    """Generated targets, given tokens included."""

    ids: Int[Tensor, "rows width"]
    """Target tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""
    nfe: Int[Tensor, " rows"]
    """Evaluations of the network that the row took part in."""
    trace: SkeletonTrace | None
    """The edits, when asked for."""


def call_model(
    model: nn.Module,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"],
    *,
    positions: Int[Tensor, " cells"],
) -> Float[Tensor, "cells vocab"]:
    """Call the network as the loss and the predictor do; see :meth:`xlm_skeleton.Skeleton.forward`.

    ``nn.Module.__call__`` is untyped: here its result gets its type.
    """
    logits: Tensor = model(input_ids, attention_mask, positions=positions)
    return logits
