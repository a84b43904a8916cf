"""Arguments and results of a family's collators, loss and predictor: the same records in every family.

Axes: ``examples`` of a batch as they were given, ``rows`` of a batch, ``width`` tokens of the longest target,
``edits`` of a trace, ``draws`` of a likelihood. Batches are records of each family; a loss output or a
likelihood with more fields is a subclass. These classes are optional: readers of a record use its attributes
only, so a family may have its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

INSERT = 0
"""The operation of an edit that inserts its token into a gap."""
WRITE = 1
"""The operation of an edit that writes its token over another."""
DELETE = 2
"""The operation of an edit that deletes a token; its own token has no meaning."""


class Example(TypedDict):
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


@dataclass(frozen=True)
class LossOutput:
    """A loss as a sum with its normaliser: sums and counts of several batches add up exactly."""

    loss_sum: Float[Tensor, ""]
    """What is differentiated: the sum of the terms."""
    loss_count: Int[Tensor, ""]
    """Normaliser of ``loss_sum``: the number of tokens, cells or rows in it."""
    terms: dict[str, Float[Tensor, ""]]
    """The parts of ``loss_sum`` by name."""


@dataclass(frozen=True)
class Likelihood:
    """-log p(target tokens that are not given | given tokens), or an estimate of an upper bound of it."""

    nll: Float64[Tensor, " examples"]
    """Nats per example, averaged over the draws."""
    num_tokens: Int[Tensor, " examples"]
    """Target tokens of the raw example that are not given, without any special token."""
    nll_kind: Literal["exact", "bound"]
    """Whether the expectation of ``nll`` is the value itself or an upper bound of it."""
    num_draws: int
    """Draws of noise averaged for each example."""
    models_length: bool
    """Whether the length of the target is part of what is scored."""


Event = Literal["text", "cells"]
"""What a sampler's likelihood scores: the text alone, or also what the sampler writes behind its end."""


@dataclass(frozen=True)
class Targets:
    """Texts whose probability under a sampler is asked for, given tokens of infilling included."""

    ids: Int[Tensor, "rows width"]
    """Target tokens without special tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""


@dataclass(frozen=True)
class SamplerLikelihood(Likelihood):
    """-log p(text | given tokens) under a sampler with all its options, by replay with the text forced.

    ``nll`` is -log of the mean weight over the draws (importance-weighted bound, arXiv:1509.00519): infinite
    for a text that the sampler cannot write, or did not write in any draw; never an estimate of the
    likelihood bound of the network, of which it is neither an upper nor a lower bound. ``num_draws`` is 1
    where nothing is drawn.
    """

    log_weights: Float64[Tensor, "draws examples"]
    """Nats of each replay; the expectation of their exponential is p(text), see ``has_all_paths``."""
    smallest_gap: Float64[Tensor, " examples"]
    """Least distance between a score that decided a choice and one that would have changed it; infinite if no
    choice depends on scores. In float32, below 1e-5, another batch shape may run another sampler."""
    nfe: Int[Tensor, " examples"]
    """Evaluations of the network that the example took part in, in all draws."""
    has_all_paths: bool = True
    """Whether a replay may take every path on which the sampler writes the text. If not, the expectation of
    the exponential of ``log_weights`` is the probability of some paths, and less than p(text)."""

    @staticmethod
    def of(
        log_weights: Float64[Tensor, "draws examples"],
        *,
        num_tokens: Int[Tensor, " examples"],
        is_exact: bool,
        models_length: bool,
        smallest_gap: Float64[Tensor, " examples"],
        nfe: Int[Tensor, " examples"],
        has_all_paths: bool = True,
    ) -> "SamplerLikelihood":
        """The likelihood of weights of draws; ``is_exact`` if the replay consumed no random number."""
        return SamplerLikelihood(
            nll=math.log(len(log_weights)) - log_weights.logsumexp(0),
            num_tokens=num_tokens,
            nll_kind="exact" if is_exact else "bound",
            num_draws=len(log_weights),
            models_length=models_length,
            log_weights=log_weights,
            smallest_gap=smallest_gap,
            nfe=nfe,
            has_all_paths=has_all_paths,
        )


@dataclass(frozen=True)
class Trace:
    """How the targets came to be: one entry per edit, in order.

    Replaying the edits of a row from the empty sequence gives its ids.
    """

    step: Int[Tensor, " edits"]
    """0 for edits that build the given start, then the step of the sampler, from 1."""
    row: Int[Tensor, " edits"]
    """Row of the batch."""
    operation: Int[Tensor, " edits"]
    """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``; 2: delete there."""
    position: Int[Tensor, " edits"]
    """Gap (0 to the current length) or position in the target as it is at that moment."""
    token: Int[Tensor, " edits"]
    """Token id."""

    @staticmethod
    def of(tables: Iterable[Tensor]) -> "Trace":
        """The trace of tables of :func:`edits_of_step`, (5, edits) each, in their order; at least one."""
        return Trace(*torch.cat(list(tables), dim=1))


@dataclass(frozen=True)
class FullTrace(Trace):
    """Every edit of a generation and its probability: what ``trace="full"`` gives.

    Edits behind the end of the final text are part of it, and those of a step have the order in which they
    were made. The sum of a row's ``log_prob`` and its ``place_log_prob`` is log p(trajectory) up to the
    probability of draws that do not depend on the network.
    """

    log_prob: Float64[Tensor, " edits"]
    """Nats with which each token was drawn, or token and position where these are drawn together; 0 for
    edits that are not drawn from the network (the given start, cells that are masked again)."""
    entropy: Float64[Tensor, " edits"]
    """Nats: entropy of the distribution that ``log_prob`` belongs to; 0 for edits that are not drawn."""
    place_log_prob: Float64[Tensor, " rows"]
    """Nats of the row's other draws that depend on the network, such as whether to stop."""


@dataclass(frozen=True)
class UserEdit:
    """A token that the user writes into a text while it is generated, and that stays."""

    row: int
    """Row of the batch."""
    step: int
    """The step of the sampler behind which it is written, from 1."""
    position: int
    """Position in the target as it is then."""
    token: int
    """Token id."""

    def made_in(self, trace: Trace) -> Trace:
        """The trace, which has this edit.

        Raises:
            ValueError: If the generation ended before its step.
        """
        found = (trace.step == self.step) & (trace.row == self.row) & (trace.position == self.position)
        if not bool((found & (trace.operation == WRITE) & (trace.token == self.token)).any()):
            raise ValueError(f"the row has no step {self.step}")
        return trace


@dataclass(frozen=True)
class TrajectoryLogProbs:
    """Log-probabilities of the draws of a trajectory under a network, with gradient.

    E[R] of a reward R has the gradient E[R * gradient of their sum]; the difference of the sums of two
    networks is a log importance weight. Draws that do not depend on the network cancel in both.
    """

    log_prob: Float64[Tensor, " edits"]
    """As :attr:`FullTrace.log_prob`, in nats."""
    place_log_prob: Float64[Tensor, " rows"]
    """As :attr:`FullTrace.place_log_prob`, in nats."""


@dataclass(frozen=True)
class Prediction:
    """Generated targets, given tokens of infilling included."""

    ids: Int[Tensor, "rows width"]
    """Target tokens without special tokens, padded on the right."""
    lengths: Int[Tensor, " rows"]
    """Number of target tokens."""
    nfe: Int[Tensor, " rows"]
    """Evaluations of the network that the row took part in, as the sampler is defined."""
    trace: Trace | None
    """The edits, if requested."""
    calls: Int[Tensor, " rows"] | None = None
    """Calls of the network that the row took part in, in fact; None: as ``nfe``."""
    states: Int[Tensor, " rows"] | None = None
    """Sequences evaluated for the row in them, such as the hypotheses of a search; None: as ``nfe``."""
    log_weight: Float64[Tensor, " rows"] | None = None
    """Nats: importance weight of each text under a hard constraint, the probability of the allowed tokens in
    all its draws. The mean weight estimates the probability of an allowed text, and texts counted by their
    weights have the sampler's distribution given that; None without a constraint."""

    def with_trace(self, trace: Trace) -> "TracedPrediction":
        """The same with its edits."""
        return TracedPrediction(
            ids=self.ids,
            lengths=self.lengths,
            nfe=self.nfe,
            trace=trace,
            calls=self.calls,
            states=self.states,
            log_weight=self.log_weight,
        )


@dataclass(frozen=True)
class TracedPrediction(Prediction):
    """What ``trace=True`` gives: the targets, and how they came to be."""

    trace: Trace
    """The edits."""


@dataclass(frozen=True)
class FullyTracedPrediction(TracedPrediction):
    """What ``trace="full"`` gives: the targets, every edit, and its probability."""

    trace: FullTrace
    """The edits."""


def edits_of_step(
    step: int | Int[Tensor, " edits"],
    operation: Literal[0, 1, 2],
    row: Int[Tensor, " edits"],
    position: Int[Tensor, " edits"],
    token: Int[Tensor, " edits"],
) -> Int[Tensor, "5 edits"]:
    """Edits of one kind, and of one step or a step each, as a table with the fields of :class:`Trace`."""
    steps = torch.full_like(row, step) if isinstance(step, int) else step
    return torch.stack([steps, row, torch.full_like(row, operation), position, token])
