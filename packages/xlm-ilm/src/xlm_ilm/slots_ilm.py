"""Which slots an evaluation inserts into, where they are ranked: rank and quota of the masked families.

A rank gives each free slot a score, a quota turns scores into a set of slots (:mod:`xlm.modules.samplers`),
and each of these gets a token. So the slots are a function of the text, and several tokens come of one
evaluation where the network is sure.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from xlm.modules import require
from xlm.modules.samplers import Chooser, Sampler, View, compose
from xlm.modules.samplers.quotas import gap_of_ranks
from xlm.modules.samplers.ranks import Confidence
from xlm_ilm.insertion_ilm import Pairs

SlotRankName = Literal["drawn", "top_prob", "margin", "entropy"]
SlotQuotaName = Literal["count", "threshold", "budget"]


@dataclass(frozen=True)
class SlotRank:
    """The slots first that surely lack a token, and surely which one.

    With J(k) the probability that the next token goes into slot k and p(v | k) that of the token, the score
    is the confidence in p(. | k) times J(k) / max J; of "entropy", which is in nats, the confidence plus the
    logarithm of this share. So a slot that hardly lacks anything comes late, however sure its token would be.

    Args:
        kind: "top_prob", "margin" or "entropy", see :func:`xlm.modules.confidence`.
    """

    kind: Confidence
    needs_logits: ClassVar[bool] = True

    @property
    def certain(self) -> float:
        """Score of the most probable slot if its token is certain."""
        return 0.0 if self.kind == "entropy" else 1.0

    def scores(self, view: View, /) -> Tensor:
        """Scores of the free slots (rows, slots)."""
        log_mass = view.spread(view.predictions().to(torch.float64).logsumexp(-1))
        highest = log_mass.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
        log_share = log_mass - highest
        confidence = view.confidence(self.kind)
        # Without a free slot, or a possible token, the confidence is -inf, or no number.
        scores = confidence + log_share if self.kind == "entropy" else confidence * log_share.exp()
        return scores.masked_fill(log_share == -math.inf, -math.inf)


@dataclass(frozen=True)
class PerEvaluation:
    """A number of slots fixed in advance."""

    number: int
    needs_logits: ClassVar[bool] = False

    def begin(self) -> Chooser:
        """Nothing to remember."""
        return self

    def choose(self, scores: Tensor, view: View, /) -> Tensor:
        """The best slots."""
        return view.best(scores, self.number)

    def gap(self, scores: Tensor, view: View, chosen: Tensor, /) -> Tensor:
        """Between the last slot chosen and the first one not chosen."""
        return gap_of_ranks(scores, view, chosen)


def compose_slots(
    rank: SlotRankName, quota: SlotQuotaName, *, number: int, tau: float | None, gamma: float | None
) -> Sampler | None:
    """Which slots an evaluation inserts into; None if slots are drawn.

    Args:
        rank: "drawn", or the kind of a :class:`SlotRank`.
        quota: "count", "threshold" (scores above tau, and the best) or "budget" (the best slots while what
            the scores before the last lack to certain ones adds up to at most gamma).
        number: Slots of "count".
        tau: Of "threshold"; None for 0.9.
        gamma: Of "budget"; None for 0.1.

    Raises:
        ValueError: If the parts do not fit together, with the reason.
    """
    ranks, quotas = get_args(SlotRankName), get_args(SlotQuotaName)
    why = "an order that ignores the network inserts where nothing is missing"
    require(rank in ranks, "rank", rank, f"one of {', '.join(ranks)}: {why}")
    why = "the number of missing tokens is not known in advance"
    require(quota in quotas, "quota", quota, f"one of {', '.join(quotas)}: {why}")
    require(number >= 1, "insertions_per_step", number, "at least 1")
    require(quota == "count" or number == 1, "insertions_per_step", number, f"left out with quota={quota}")
    if rank == "drawn":
        why = "the other quotas compare scores of slots, which top_prob, margin and entropy have"
        given = (quota, tau, gamma)
        fits = given == ("count", None, None)
        require(fits, "quota, tau, gamma", given, f"count and left out with rank=drawn: {why}")
        return None
    how_many = PerEvaluation(number) if quota == "count" else quota
    uncertainty = "rank" if quota == "budget" else None
    return compose(rank=SlotRank(rank), quota=how_many, tau=tau, gamma=gamma, uncertainty=uncertainty)


def choose_slots(
    sampler: Sampler, pairs: Pairs, free: Tensor, seeds: Tensor, step: int
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Choose the slots of an evaluation.

    Args:
        sampler: Rank and quota.
        pairs: What the network says.
        free: (rows, slots) the slots to choose from.
        seeds: (rows,) of the rows.
        step: Number of the evaluation, from 1.

    Returns:
        (rows, slots) the number of the insertion into each chosen slot, the best first, -1 at the others; and
        what computes the distance (rows,) of scores that could change the choice, for rows with a free slot.
    """
    assert pairs.scored.logits is not None
    is_free = free[pairs.cells.row, pairs.cells.slot]
    view = View(seeds, step, free, free, logits=pairs.scored.logits[is_free])
    scores, chooser = sampler.rank.scores(view), sampler.quota.begin()
    chosen = chooser.choose(scores, view)
    order = scores.masked_fill(~chosen, -math.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).where(chosen, -1), lambda: chooser.gap(scores, view, chosen)
