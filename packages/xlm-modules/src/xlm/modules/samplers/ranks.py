"""Ranks: scores of the masked cells, of which a quota (:mod:`xlm.modules.samplers.quotas`) takes the best.

Equal scores: the left cell comes first. Scores are those of the prediction at temperature 1 without filters.

Axes: ``rows`` and ``length`` of the rows that are written, ``cells`` their masked cells in row-major order.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules.random import uniform
from xlm.modules.sampling import at_least_float32

Confidence = Literal["top_prob", "margin", "entropy"]

_LOGITS_AT_ONCE = 2**18
"""Logits that are ranked together: 1 MiB in float32, which a processor's cache holds."""
_LEAST_LOGIT = -1000.0
"""Below this distance to the largest logit a weight is 0 in every precision: a finite number in place of
-inf, whose product with a weight of 0 is 0."""

STREAM_CELLS = 0
"""Stream of the draws that decide which cells are written or masked again."""
STREAM_TOKENS = 1


@dataclass(frozen=True)
class View:
    """What ranks and quotas see of the rows before a turn."""

    seeds: Int[Tensor, " rows"]
    turn: int
    """Number of the evaluation, from 1."""
    masked: Bool[Tensor, "rows length"]
    start: Bool[Tensor, "rows length"]
    """The cells that were masked before the first turn."""
    logits: Float[Tensor, "cells vocab"] | None = None
    """-inf at impossible tokens; None if the cells are chosen without the network."""
    tokens: Int[Tensor, " cells"] | None = None
    """Drawn tokens, for a rank that looks at them."""
    _known: dict[Confidence, Tensor] = field(default_factory=dict[Confidence, Tensor], init=False)

    @property
    def num_start(self) -> Int[Tensor, " rows"]:
        """Masks before the first turn."""
        return self.start.sum(1)

    def spread(self, values: Float64[Tensor, " cells"]) -> Float64[Tensor, "rows length"]:
        """Values of the masked cells by row and column, -inf elsewhere."""
        table = values.new_full(self.masked.shape, -math.inf)
        table[self.masked] = values
        return table

    def predictions(self) -> Float[Tensor, "cells vocab"]:
        """The logits of the masked cells."""
        assert self.logits is not None
        return self.logits

    def confidence(self, kind: Confidence) -> Float64[Tensor, "rows length"]:
        """:func:`xlm.modules.confidence` of the masked cells by row and column, computed once."""
        if kind not in self._known:
            self._known[kind] = self.spread(confidence(self.predictions(), kind))
        return self._known[kind]

    def best(self, scores: Float64[Tensor, "rows length"], number: int = 1) -> Bool[Tensor, "rows length"]:
        """The masked cells of each row with the highest scores."""
        return take_top(
            scores, self.masked.new_full((len(self.masked),), number, dtype=torch.int64), self.masked
        )


class Rank(Protocol):
    """An order of the masked cells."""

    needs_logits: ClassVar[bool]
    """Whether the scores depend on the network."""

    @property
    def certain(self) -> float | None:
        """Score of a cell whose token is certain, the highest; None if the score is no confidence."""
        ...

    def scores(self, view: View, /) -> Float64[Tensor, "rows length"]:
        """Scores of the masked cells, higher for earlier."""
        ...


@dataclass(frozen=True)
class Random:
    """A uniform number for each cell and turn: a random order."""

    needs_logits: ClassVar[bool] = False

    @property
    def certain(self) -> None:
        """No confidence."""

    def scores(self, view: View, /) -> Tensor:
        """Uniform numbers."""
        return uniform(view.seeds, view.masked.shape[1], step=view.turn, stream=STREAM_CELLS)


@dataclass(frozen=True)
class LeftToRight:
    """The leftmost cells first."""

    needs_logits: ClassVar[bool] = False

    @property
    def certain(self) -> None:
        """No confidence."""

    def scores(self, view: View, /) -> Tensor:
        """Minus the column."""
        column = torch.arange(view.masked.shape[1], device=view.masked.device, dtype=torch.float64)
        return -column.expand(view.masked.shape)


@dataclass(frozen=True)
class Confident:
    """The most confident cells first (MaskGIT; Chang et al. 2022, arXiv:2202.04200).

    Args:
        kind: "top_prob", "margin" or "entropy", see :func:`xlm.modules.confidence`.
    """

    kind: Confidence
    needs_logits: ClassVar[bool] = True

    @property
    def certain(self) -> float:
        """Score of a cell whose token is certain."""
        return 0.0 if self.kind == "entropy" else 1.0

    def scores(self, view: View, /) -> Tensor:
        """Confidence in the prediction."""
        return view.confidence(self.kind)


@dataclass(frozen=True)
class Drawn:
    """The cells first whose drawn token is most probable, as in the published code of MaskGIT and LLaDA.

    A token is drawn for every masked cell, and those not chosen are discarded. Where a text is likely, other
    draws would have led to it in another order: this order is no function of the text, and the sampler has no
    likelihood by replay.
    """

    needs_logits: ClassVar[bool] = True

    @property
    def certain(self) -> float:
        """Score of a cell whose token is certain."""
        return 1.0

    def scores(self, view: View, /) -> Tensor:
        """Probability of the drawn token."""
        assert view.tokens is not None
        return view.spread(log_prob_of(view.predictions(), view.tokens).exp())


def log_prob_of(
    logits: Float[Tensor, "cells vocab"], tokens: Int[Tensor, " cells"]
) -> Float64[Tensor, " cells"]:
    """Log-probability of each cell's token at temperature 1 without filters, in float64."""
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1).to(torch.float64)
    return chosen - logits.to(torch.float64).logsumexp(-1)


def confidence(logits: Float[Tensor, "rows vocab"], kind: Confidence) -> Float64[Tensor, " rows"]:
    """How sure the network is of each cell, computed from p = softmax(logits).

    Exponentials are in the precision of the logits, float32 at least. Sums with the largest probability are
    in float64, so that the others count however certain a cell is.

    Args:
        logits: Unnormalised log-probabilities of the cells, shape (rows, vocab); -inf for tokens that are not
            allowed.
        kind: "top_prob" for the largest probability; "margin" for its distance to the second largest (Kim et
            al. 2025, arXiv:2502.06768); "entropy" for the negative entropy, sum of p log p.

    Returns:
        Higher is surer: in (0, 1], [0, 1] and [-log vocab, 0], shape (rows,).

    Raises:
        ValueError: If kind is none of the three.
    """
    if kind not in ("top_prob", "margin", "entropy"):
        raise ValueError(f"kind must be 'top_prob', 'margin' or 'entropy', got {kind!r}")
    return torch.cat([_confidence(piece, kind) for piece in pieces(logits)])


def pieces(logits: Float[Tensor, "rows vocab"]) -> tuple[Float[Tensor, "some vocab"], ...]:
    """A few rows at a time, as many as a processor's cache holds; at least one piece."""
    return logits.split(max(_LOGITS_AT_ONCE // max(logits.shape[-1], 1), 1))


def _confidence(logits: Tensor, kind: Confidence) -> Tensor:
    # One pass of a fused kernel; probabilities that add up to 1 after rounding are divided by their sum.
    p = at_least_float32(logits).softmax(-1)
    total = p.sum(-1, dtype=torch.float64)
    if kind == "top_prob":
        return p.amax(-1).to(torch.float64) / total
    if kind == "margin":
        # Of a single token there is no second: its probability is 0.
        first, second = torch.nn.functional.pad(p, (0, 1)).topk(2).values.to(torch.float64).unbind(1)
        return (first - second) / total
    highest = logits.amax(-1, keepdim=True)
    log_share = (at_least_float32(logits) - highest).clamp_(min=_LEAST_LOGIT)
    largest = p.amax(-1).to(torch.float64)
    return log_share.mul_(p).sum(-1).to(torch.float64) / total - (total / largest).log()


def divergence(
    logits: Float[Tensor, "rows vocab"], other: Float[Tensor, "rows vocab"]
) -> Float64[Tensor, " rows"]:
    """KL(softmax(logits) || softmax(other)) in nats, a few rows at a time."""
    found = [torch.zeros(0, dtype=torch.float64, device=logits.device)]
    for piece, before in zip(pieces(logits), pieces(other), strict=True):
        log_p, log_q = (at_least_float32(table).log_softmax(-1) for table in (piece, before))
        p = log_p.exp()
        change = log_p.clamp_(min=_LEAST_LOGIT).sub_(log_q.clamp_(min=_LEAST_LOGIT))
        found.append(p.mul_(change).sum(-1, dtype=torch.float64))
    return torch.cat(found)


def take_top(
    scores: Float[Tensor, "batch length"],
    counts: Int[Tensor, " batch"],
    eligible: Bool[Tensor, "batch length"],
) -> Bool[Tensor, "batch length"]:
    """Mark the eligible cells with the highest scores of each row, among equals those on the left.

    Args:
        scores: Score of each cell, shape (batch, length); those of cells that are not eligible do not matter.
        counts: Cells to take in each row, shape (batch,); more than there are takes all eligible ones.
        eligible: True at the cells to choose from, shape (batch, length).

    Returns:
        True at the cells taken, shape (batch, length).
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    candidates = eligible.gather(-1, order)
    taken = candidates & (candidates.cumsum(-1) <= counts.unsqueeze(-1))
    return torch.zeros_like(eligible).scatter(-1, order, taken)


def unmask_counts(num_masked: Int[Tensor, " batch"], steps_left: int) -> Int[Tensor, " batch"]:
    """Cells to unmask now so that the masked cells spread evenly over the steps left, larger parts first.

    This is ceil(num_masked / steps_left): no step is idle while a cell is masked, and the last step leaves
    none. Ten cells in four steps are unmasked as 3, 3, 2, 2.

    Args:
        num_masked: Masked cells of each row, shape (batch,).
        steps_left: Steps to come with this one, at least 1.

    Returns:
        Number of cells for :func:`take_top`, shape (batch,).

    Raises:
        ValueError: If steps_left is below 1.
    """
    if steps_left < 1:
        raise ValueError(f"steps_left must be at least 1, got {steps_left}")
    return -(-num_masked // steps_left)
