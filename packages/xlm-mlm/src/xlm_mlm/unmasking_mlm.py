"""Which masked cells a step fills: how many of them, and in which order.

An order gives each masked cell a score, higher for earlier: a uniform number ("random") or the network's
confidence in the cell (:func:`xlm.modules.confidence`). A rule turns scores into a set of cells. Every rule
chooses at least one cell of a row that has any, so each evaluation of the network counts.

Shapes: scores and masked are (rows, length); num_start and num_left, the masked cells of each row before the
first step and now, are (rows,).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import take_top, unmask_counts

Order = Literal["random", "top_prob", "margin", "entropy"]
Schedule = Literal["uniform", "cosine", "sine"]

CERTAIN: dict[Order, float] = {"top_prob": 1.0, "margin": 1.0, "entropy": 0.0}
"""Confidence in a cell whose token is certain."""


@dataclass(frozen=True)
class Counts:
    """A number of cells fixed in advance: the best by score.

    A row with M masks is filled in exactly S = min(num_steps, M) steps, of which none is without a cell:

        uniform  steps differ by at most one cell, larger ones first
        cosine   M cos(pi s / 2S) masks are left after step s, rounded down: few cells at first, many in the
                 end (MaskGIT, Chang et al. 2022, arXiv:2202.04200, section 3.3)
        sine     M (1 - sin(pi s / 2S)) masks are left: many cells at first, few in the end

    Args:
        num_steps: The most steps; None for as many as there are masks, one cell each.
        schedule: How the masks are divided among the steps.
    """

    num_steps: int | None
    schedule: Schedule

    def choose(
        self,
        scores: Float[Tensor, "rows length"],
        masked: Bool[Tensor, "rows length"],
        num_start: Int[Tensor, " rows"],
        step: int,
    ) -> Bool[Tensor, "rows length"]:
        """Cells to fill in a step, from 1."""
        return take_top(scores, self._counts(num_start, masked.sum(1), step), masked)

    def _counts(self, num_start: Tensor, num_left: Tensor, step: int) -> Tensor:
        """(rows,) number of cells to fill."""
        if self.num_steps is None:
            return torch.ones_like(num_left)
        if self.schedule == "uniform":
            return unmask_counts(num_left, self.num_steps - step + 1)
        steps = num_start.clamp(max=self.num_steps)
        angle = math.pi / 2 * step / steps.to(torch.float64)
        share = angle.cos() if self.schedule == "cosine" else 1 - angle.sin()
        left_after = (num_start * share).floor().long()
        # At least one cell for this step and for each step to come.
        return num_left - torch.minimum(torch.maximum(left_after, steps - step), num_left - 1)


@dataclass(frozen=True)
class MinConfidence:
    """Every cell whose confidence exceeds a threshold, and the most confident one.

    Wu et al. 2025, arXiv:2505.22618.

    Args:
        threshold: What the confidence has to exceed.
    """

    threshold: float

    def choose(
        self,
        scores: Float[Tensor, "rows length"],
        masked: Bool[Tensor, "rows length"],
        num_start: Int[Tensor, " rows"],
        step: int,
    ) -> Bool[Tensor, "rows length"]:
        """Cells to fill in a step."""
        return masked & (scores > self.threshold) | _most_confident(scores, masked)


@dataclass(frozen=True)
class MaxUncertainty:
    """The most confident cells while the uncertainties of those before them add up to less than a bound.

    At least one cell.

    The uncertainty of a cell is the confidence that it lacks: 1 - p_max for "top_prob", 1 - margin for
    "margin", the entropy in nats for "entropy". The last is the entropy-bounded sampler (Ben-Hamu et al.
    2025, arXiv:2505.24857). Among equal cells the left one comes first.

    Args:
        bound: What the sum has to stay below.
        certain: Confidence in a cell whose token is certain.
    """

    bound: float
    certain: float

    def choose(
        self,
        scores: Float[Tensor, "rows length"],
        masked: Bool[Tensor, "rows length"],
        num_start: Int[Tensor, " rows"],
        step: int,
    ) -> Bool[Tensor, "rows length"]:
        """Cells to fill in a step."""
        uncertainty = (self.certain - scores.to(torch.float64)).masked_fill(~masked, math.inf)
        ordered, order = uncertainty.sort(dim=1, stable=True)
        before = torch.zeros_like(ordered)
        before[:, 1:] = ordered.cumsum(1)[:, :-1]
        within = torch.zeros_like(masked).scatter(1, order, before < self.bound)
        return masked & within | _most_confident(scores, masked)


Rule = Counts | MinConfidence | MaxUncertainty


def _most_confident(scores: Tensor, masked: Tensor) -> Tensor:
    return take_top(scores, torch.ones_like(masked[:, 0], dtype=torch.int64), masked)
