"""What the parts of the autoregressive language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
    next token is predicted, ``edits`` of a trace.

A training row is ``prompt... [BOS] target... [EOS]`` with padding on its right. A row for generation is
``prompt... [BOS]``, with the fixed beginning of the target if there is one, and padding on its left, so that
all rows are continued at the same column. BOS and EOS are there where the collator has an id for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import KeyValueCache


class ARLMExample(TypedDict):
    """One row of data: token ids without special tokens.

    The keys present define the task: only ``target_ids`` is language modelling, ``prompt_ids`` besides it
    prefix to suffix, ``fixed`` infilling, and neither of them unconditional generation.
    """

    seed: int
    """Source of all randomness of the row (int64)."""
    prompt_ids: NotRequired[Int[Tensor, " prompt"]]
    """Given text left of the target."""
    target_ids: NotRequired[Int[Tensor, " target"]]
    """The text to model or to generate."""
    fixed: NotRequired[Bool[Tensor, " target"]]
    """True at target tokens that are given; here they must be a prefix of the target."""
    segment_ids: NotRequired[Int[Tensor, " target"]]
    """Of a block packed with several documents: number of the document of each token, from 0."""


class ARLMBatch(TypedDict):
    """Whole rows, for the training loss and the likelihood."""

    input_ids: Int[Tensor, "rows length"]
    """``prompt... [BOS] target... [EOS]``, padded on the right."""
    attention_mask: Bool[Tensor, "rows length"] | None
    """True at real tokens; None if padding is on the right only, where a causal network does not see it."""
    segment_ids: NotRequired[Int[Tensor, "rows length"]]
    """Of packed blocks: the document of each token, which sees no other; -1 at padding."""
    target_row: Int[Tensor, " targets"]
    """Row of each token to predict: EOS, and target tokens that are not fixed and have a token of their text
    on their left. Precomputed in the collator: nonzero() on a GPU forces a synchronisation."""
    target_column: Int[Tensor, " targets"]
    """Its column."""
    given_row: Int[Tensor, " given"]
    """Row of each other token with a token of its text on its left: of the prompt, BOS, fixed ones."""
    given_column: Int[Tensor, " given"]
    """Its column."""
    num_tokens: Int[Tensor, " rows"]
    """Tokens to predict, without the EOS that the collator adds."""
    models_length: Bool[Tensor, " rows"]
    """Whether each row ends with EOS, so that the length of the target is predicted too."""


class ARLMPromptBatch(TypedDict):
    """The given part of each row, for generation."""

    input_ids: Int[Tensor, "rows length"]
    """``prompt... [BOS] fixed...``, padded on the left."""
    attention_mask: Bool[Tensor, "rows length"]
    """True at real tokens."""
    num_fixed: Int[Tensor, " rows"]
    """Fixed target tokens at the end of each row."""
    budget: Int[Tensor, " rows"]
    """The most tokens that may be generated."""


@dataclass(frozen=True)
class ARLMLossOutput:
    """The loss as sums over predicted tokens, with a count for :class:`xlm_arlm.ARLMMetrics`."""

    loss_sum: Float[Tensor, ""]
    """What is differentiated: the sum of the terms."""
    loss_count: Int[Tensor, ""]
    """Number of predicted tokens, the normaliser of ``loss_sum``."""
    terms: dict[str, Float[Tensor, ""]]
    """``target`` (EOS included) and, where it is predicted, ``prompt`` (BOS and fixed tokens included)."""
    num_target: Int[Tensor, ""]
    """Number of predicted tokens in the term ``target``."""


@dataclass(frozen=True)
class ARLMLikelihood:
    """-log p(target tokens that are not fixed, EOS | given tokens), without any approximation."""

    nll: Float64[Tensor, " rows"]
    """Nats per row."""
    num_tokens: Int[Tensor, " rows"]
    """Target tokens that are scored, without EOS."""
    models_length: bool
    """Whether the length of the target is part of what is scored: where EOS is."""
    nll_kind: Literal["exact", "bound"] = "exact"
    """``nll`` is the value itself."""
    num_draws: int = 1
    """There is nothing to average."""


@dataclass(frozen=True)
class ARLMTrace:
    """How the targets came to be: one entry per token, in order.

    Replaying the insertions of a row from the empty sequence gives its ids.
    """

    step: Int[Tensor, " edits"]
    """0 for fixed tokens, then the number of the generated token, from 1."""
    row: Int[Tensor, " edits"]
    """Row of the batch."""
    operation: Int[Tensor, " edits"]
    """Always 0: insert ``token`` into gap ``position``."""
    position: Int[Tensor, " edits"]
    """The gap at the end of the target as it is at that moment."""
    token: Int[Tensor, " edits"]
    """Token id."""


@dataclass(frozen=True)
class ARLMPrediction:
    """Generated targets: what stands right of BOS, fixed tokens included, without EOS."""

    ids: Int[Tensor, "rows width"]
    """Target tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""
    nfe: Int[Tensor, " rows"]
    """Evaluations of the network that the row took part in."""
    trace: ARLMTrace | None
    """The insertions, when asked for."""


@dataclass(frozen=True)
class ARLMTracedPrediction(ARLMPrediction):
    """What ``trace=True`` gives: the targets, and how they came to be."""

    trace: ARLMTrace
    """The insertions."""


ARLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: ARLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    *,
    positions: Int[Tensor, " cells"],
    targets: Int[Tensor, " cells"] | None = None,
    cache: KeyValueCache | None = None,
) -> Float[Tensor, "cells vocab"] | Float[Tensor, " cells"]:
    """Call the network through ``forward``, as loss and predictors do; see :meth:`xlm_arlm.ARLM.forward`."""
    return model(input_ids, attention_mask, positions=positions, targets=targets, cache=cache)
