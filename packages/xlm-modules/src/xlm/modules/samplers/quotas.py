"""Quotas: how many of the masked cells a turn writes, the best ones by rank.

Every quota takes at least one cell of a row that has any, so each evaluation of the network counts. Axes are
those of :mod:`xlm.modules.samplers.ranks`.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.samplers.ranks import View, divergence, take_top, unmask_counts

Schedule = Literal["uniform", "cosine", "sine"]


class Chooser(Protocol):
    """Takes cells by their scores, in one generation."""

    def choose(self, scores: Float64[Tensor, "rows length"], view: View, /) -> Bool[Tensor, "rows length"]:
        """Cells to write: at least one of each row that has any."""
        ...

    def gap(
        self, scores: Float64[Tensor, "rows length"], view: View, chosen: Bool[Tensor, "rows length"], /
    ) -> Float64[Tensor, " rows"]:
        """The least change of a score that could change the choice just made; infinite if none could."""
        ...


class Quota(Protocol):
    """How many cells a turn writes."""

    needs_logits: ClassVar[bool]
    """Whether the cells depend on the network, apart from their scores."""

    def begin(self) -> Chooser:
        """The rule for one generation, with a memory of its own if it has one."""
        ...


@dataclass(frozen=True)
class Count:
    """A number of cells fixed in advance.

    A row with M masks is filled in exactly S = min(num_steps, M) turns:

        uniform  turns differ by at most one cell, larger ones first
        cosine   M cos(pi s / 2S) masks are left after turn s, rounded down: few cells at first, many in the
                 end (MaskGIT, Chang et al. 2022, arXiv:2202.04200, section 3.3)
        sine     M (1 - sin(pi s / 2S)) masks are left: many cells at first, few in the end

    Args:
        num_steps: The most turns; None for as many as there are masks, one cell each.
        schedule: How the masks are divided among the turns.
    """

    num_steps: int | None = None
    schedule: Schedule = "uniform"
    needs_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self.num_steps is None or self.num_steps >= 1, "num_steps", self.num_steps, "None or at least 1"
        )
        schedules = get_args(Schedule)
        require(self.schedule in schedules, "schedule", self.schedule, f"one of {schedules}")

    def begin(self) -> Chooser:
        """Nothing to remember."""
        return self

    def choose(self, scores: Tensor, view: View) -> Tensor:
        """The best cells by score."""
        return take_top(scores, self.counts(view), view.masked)

    def gap(self, scores: Tensor, view: View, chosen: Tensor) -> Tensor:
        """Between the last cell chosen and the first one not chosen."""
        return gap_of_ranks(scores, view, chosen)

    def counts(self, view: View) -> Int[Tensor, " rows"]:
        """Number of cells that a turn fills."""
        num_left = view.masked.sum(1)
        if self.num_steps is None:
            return torch.ones_like(num_left)
        if self.schedule == "uniform":
            return unmask_counts(num_left, self.num_steps - view.turn + 1)
        steps = view.num_start.clamp(max=self.num_steps)
        angle = math.pi / 2 * view.turn / steps.to(torch.float64)
        share = angle.cos() if self.schedule == "cosine" else 1 - angle.sin()
        left_after = (view.num_start * share).floor().long()
        # At least one cell for this turn and for each to come.
        return num_left - torch.minimum(torch.maximum(left_after, steps - view.turn), num_left - 1)


@dataclass(frozen=True)
class Threshold:
    """Every cell whose confidence exceeds a threshold, and the most confident one.

    The rule of Fast-dLLM (Wu et al. 2025, arXiv:2505.22618).

    Args:
        tau: What the score has to exceed.
    """

    tau: float
    needs_logits: ClassVar[bool] = False

    def begin(self) -> Chooser:
        """Nothing to remember."""
        return self

    def choose(self, scores: Tensor, view: View) -> Tensor:
        """Cells above the threshold."""
        return view.masked & (scores > self.tau) | view.best(scores)

    def gap(self, scores: Tensor, view: View, chosen: Tensor) -> Tensor:
        """To the threshold, or of the best cell."""
        return _least(scores - self.tau, view).minimum(gap_of_ranks(scores, view, chosen))


@dataclass(frozen=True)
class Budget:
    """The longest prefix U of the ranking with sum_U h - max_U h at most gamma; always one cell.

    With h the entropy in nats this is the entropy-bounded sampler (Ben-Hamu et al. 2025, arXiv:2505.24857):
    the dependence between the tokens of a turn, which it ignores, is then at most gamma.

    Args:
        gamma: The budget, at least 0.
        certain: None: h is the entropy. Otherwise the score of a certain cell: h is what the score lacks to
            it.
    """

    gamma: float
    certain: float | None = None
    needs_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.gamma >= 0, "gamma", self.gamma, "at least 0")

    def begin(self) -> Chooser:
        """Nothing to remember."""
        return self

    def choose(self, scores: Tensor, view: View) -> Tensor:
        """The prefix within the budget."""
        return view.masked & (self._excess(scores, view) <= self.gamma) | view.best(scores)

    def gap(self, scores: Tensor, view: View, chosen: Tensor) -> Tensor:
        """Of a sum to the budget, or of ranks at the end of the prefix."""
        to_budget = _least(self._excess(scores, view) - self.gamma, view)
        return to_budget.minimum(gap_of_ranks(scores, view, chosen))

    def _excess(self, scores: Tensor, view: View) -> Tensor:
        """(rows, length) sum_U h - max_U h of the prefix U that ends with each masked cell."""
        if self.certain is None:
            lack = -view.confidence("entropy")
        else:
            lack = self.certain - scores
            scores = -lack
        order = scores.masked_fill(~view.masked, -math.inf).argsort(dim=1, descending=True, stable=True)
        ranked = lack.masked_fill(~view.masked, math.inf).gather(1, order)
        before = torch.zeros_like(ranked)
        before[:, 1:] = ranked.cumsum(1)[:, :-1]
        largest = ranked.cummax(1).values
        # sum - max, without the rounding of a difference where the last entropy is the largest.
        excess = torch.where(ranked == largest, before, before + (ranked - largest))
        return torch.zeros_like(excess).scatter(1, order, excess)


@dataclass(frozen=True)
class Stable:
    """KLASS (Kim et al. 2025, arXiv:2511.05664): all cells whose prediction is confident and has settled.

    A cell is ready if its largest probability exceeds tau and KL(p now || p before) was below eps in each of
    the last n evaluations, hence from its evaluation n + 1 on. If no cell of a row is ready, the best by rank
    are written.

    Args:
        tau: What the largest probability has to exceed, in [0, 1).
        eps: In nats, greater than 0.
        evaluations: n, at least 1.
        fallback: Number of cells written if none is ready, at least 1.
    """

    tau: float
    eps: float
    evaluations: int
    fallback: int
    needs_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.tau < 1, "tau", self.tau, "in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "greater than 0")
        require(self.evaluations >= 1, "evaluations", self.evaluations, "at least 1")
        require(self.fallback >= 1, "fallback", self.fallback, "at least 1")

    def begin(self) -> Chooser:
        """The predictions of the evaluation before."""
        return History(self)


@dataclass
class History:
    """What KLASS remembers of one generation: the last predictions of the masked cells.

    They are compared at confident cells only, which are few.
    """

    rule: Stable
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    """Logits (cells, vocab) of the last n evaluations, the latest first, and the number of each cell in them,
    (rows, length)."""
    distance: Tensor = field(default_factory=lambda: torch.empty(0))
    """(rows, length) distance of each cell to the thresholds in the last choice."""

    def choose(self, scores: Tensor, view: View) -> Tensor:
        """Cells that are confident and have settled, or the best ones."""
        top = view.confidence("top_prob")
        self.distance = (top - self.rule.tau).abs()
        number = torch.zeros_like(view.masked, dtype=torch.int64)
        number[view.masked] = torch.arange(len(view.predictions()), device=number.device)
        # Cells that are masked now were masked before: rows leave, none comes back.
        seen = [(view.predictions(), number), *self.before]
        ready = top > self.rule.tau
        if len(seen) <= self.rule.evaluations:
            ready = torch.zeros_like(ready)
        for (now, its_number), (then, other_number) in itertools.pairwise(seen):
            change = divergence(now[its_number[ready]], then[other_number[ready]])
            self.distance[ready] = self.distance[ready].minimum((change - self.rule.eps).abs())
            ready = ready.masked_scatter(ready, change < self.rule.eps)
        self.before = seen[: self.rule.evaluations]
        return ready | view.best(scores, self.rule.fallback) & ~ready.any(1, keepdim=True)

    def gap(self, scores: Tensor, view: View, chosen: Tensor) -> Tensor:
        """To a threshold, or of ranks where none was ready."""
        return _least(self.distance, view).minimum(gap_of_ranks(scores, view, chosen))


@dataclass(frozen=True)
class Hazard:
    """The cells that the reverse process of the noise schedule unmasks (:mod:`xlm.modules.samplers.plans`).

    In N steps each masked cell is unmasked with probability (alpha_s - alpha_t) / (1 - alpha_t) in the step
    from t to s, so their number is binomial: with a random rank this is ancestral sampling (Sahoo et al.
    2024, arXiv:2406.07524, section 4). Its limit of many steps is first-hitting sampling (Zheng et al. 2024,
    arXiv:2409.02908, section 4): one cell after another, each at the time at which the process in continuous
    time unmasks it.

    Args:
        num_steps: N, at least 1; None for the limit.
    """

    num_steps: int | None
    needs_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.num_steps is None or self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")

    def begin(self) -> Chooser:
        """Not available: the numbers of cells are those of the plan."""
        raise TypeError("the cells of quota=hazard are drawn for all turns at once")


def gap_of_ranks(scores: Tensor, view: View, chosen: Tensor) -> Tensor:
    """(rows,) distance between the worst cell chosen and the best one not chosen."""
    worst = scores.masked_fill(~chosen, math.inf).amin(1)
    best = scores.masked_fill(chosen | ~view.masked, -math.inf).amax(1)
    return (worst - best).abs()


def _least(distances: Tensor, view: View) -> Tensor:
    """(rows,) least absolute value at the masked cells."""
    return distances.abs().masked_fill(~view.masked, math.inf).amin(1)
