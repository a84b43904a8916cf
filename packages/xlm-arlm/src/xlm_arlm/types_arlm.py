"""What the parts of the autoregressive language model hand to each other.

Axes: ``rows`` of a batch, ``length`` columns of the longest row, ``vocab`` token ids, ``cells`` places whose
    next token is predicted, ``edits`` of a trace.

A training row is ``prompt... [BOS] target... [EOS]`` with padding on its right. A row for generation is
``prompt... [BOS]``, with the fixed beginning of the target if there is one, and padding on its left, so that
all rows are continued at the same column. BOS and EOS are there where the collator has an id for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import (
    KeyValueCache,
    TokenScores,
    TokenTargets,
    call_with_readout,
    linear_cross_entropy,
)
from xlm.modules.records import Likelihood, LossOutput


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
class ARLMLossOutput(LossOutput):
    """The loss as sums over predicted tokens, with a count for :class:`xlm_arlm.ARLMMetrics`.

    ``loss_count`` is the number of predicted tokens; the terms are ``target`` (EOS included) and, where it is
    predicted, ``prompt`` (BOS and fixed tokens included).
    """

    num_target: Int[Tensor, ""]
    """Number of predicted tokens in the term ``target``."""


@dataclass(frozen=True)
class ARLMPrefixLikelihood(Likelihood):
    """-log p of all texts that begin with the target, for which ``models_length`` is False."""

    is_greedy: Bool[Tensor, " examples"]
    """Whether each token of the target is the most probable one after those on its left."""


ARLMNetwork = Callable[..., Tensor]
"""What losses and predictors call: the network or what stands for it, such as ``torch.compile(network)``."""


def call_model(
    model: ARLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    *,
    positions: Int[Tensor, " cells"],
    cache: KeyValueCache | None = None,
) -> Float[Tensor, "cells vocab"]:
    """Call the network through ``forward``, as loss and predictors do; see :meth:`xlm_arlm.ARLM.forward`."""
    return model(input_ids, attention_mask, positions=positions, cache=cache)


def score_tokens(
    model: ARLMNetwork,
    input_ids: Int[Tensor, "rows length"],
    attention_mask: Bool[Tensor, "rows length"] | Bool[Tensor, "rows length length"] | None,
    *,
    positions: Int[Tensor, " cells"],
    tokens: Int[Tensor, " cells"],
    wants_best: bool = False,
) -> TokenScores:
    """Call the network as :func:`call_model` does, but only for the sum of -log p of the next tokens.

    With ``wants_best`` also for the most probable token of each cell.
    """
    weight = torch.ones(len(tokens), device=tokens.device)
    targets = TokenTargets(token=tokens, weight=weight, wants_best=wants_best)
    readout = partial(linear_cross_entropy, targets=targets)
    return call_with_readout(model, readout, input_ids, attention_mask, positions=positions)
