"""When tokens are inserted: the time of a row falls from 1, and each jump of it brings one token or several.

A clock draws the jumps of a row, or follows those in which the tokens of a known text appear at planned times
and gives their probability. Both come from log A_n of the row alone (:mod:`xlm_did.missing_did`).

Axes: ``rows``, ``numbers`` of missing tokens, ``width`` tokens of a text.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import categorical
from xlm_did.missing_did import (
    log_binomials,
    log_density,
    log_none_missing,
    log_probs_of_more,
    log_thinned,
    log_total,
    next_time,
)

NUM_UNIFORMS = 4
"""Uniform numbers that a jump takes."""


@dataclass(frozen=True)
class Jump:
    """The next insertions of each row."""

    number: Int[Tensor, " rows"]
    """Tokens to insert; 0: nothing is missing."""
    log_time: Float64[Tensor, " rows"]
    """log of the time at which their distribution is read."""
    log_next: Float64[Tensor, " rows"]
    """log of the time of the row after them; -inf: nothing is missing then."""


@dataclass(frozen=True)
class PlannedJump:
    """A jump in which certain tokens of a text appear."""

    jump: Jump
    due: Bool[Tensor, "rows width"]
    """The tokens."""
    log_weight: Float64[Tensor, " rows"]
    """log of the probability that this many appear then, divided by the density of the planned times; where
    no token is missing, log of the probability that none is."""


class Clock(Protocol):
    """Draws or follows jumps of rows with log A_n (rows, numbers) from their times (rows,)."""

    def draw(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """The next jump, from numbers in (0, 1) of shape (rows, NUM_UNIFORMS)."""
        ...

    def follow(self, log_a: Tensor, log_time: Tensor, times: Tensor, /) -> PlannedJump:
        """The next jump if missing tokens appear at independent uniform ``times`` (rows, width), 0: none."""
        ...


class FirstHitting:
    """One token at a time, each at the exact time of its appearance."""

    def draw(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """Stop with the probability that nothing is missing, else wait for the next token."""
        is_complete = uniforms[:, 0] < log_none_missing(log_a, log_time).exp()
        appears = next_time(log_a, log_time, uniforms[:, 1])
        return Jump((~is_complete).long(), appears, appears)

    def follow(self, log_a: Tensor, log_time: Tensor, times: Tensor, /) -> PlannedJump:
        """The token with the largest time."""
        latest, place = times.max(1)
        is_missing = latest > 0
        log_next = latest.where(is_missing, 1.0).log()
        due = torch.zeros_like(times, dtype=torch.bool).scatter(
            1, place.unsqueeze(1), is_missing.unsqueeze(1)
        )
        log_weight = torch.where(
            is_missing, log_density(log_a, log_time, log_next), log_none_missing(log_a, log_time)
        )
        return PlannedJump(Jump(is_missing.long(), log_next, log_next), due, log_weight)


@dataclass(frozen=True)
class EqualSteps:
    """All tokens that appear within one of N equal parts of (0, 1) at once, in their exact number.

    Parts in which nothing appears are skipped, as their number of tokens needs no new evaluation. The first
    token of the next part with any is drawn as in :class:`FirstHitting`; of the tokens that are still missing
    then, each appears in the same part with the probability that its time, uniform below the first one, does.
    """

    num_steps: int
    """N."""

    def draw(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """Stop with the probability that nothing is missing, else skip to the next part with a token."""
        is_complete = uniforms[:, 0] < log_none_missing(log_a, log_time).exp()
        appears = next_time(log_a, log_time, uniforms[:, 1])
        part = self._part(appears.exp()).maximum(self._part_from(log_time))
        # Of a complete row nothing may be possible: it draws from a distribution of its own.
        log_probs = log_probs_of_more(log_a, appears).masked_fill(is_complete.unsqueeze(1), 0.0)
        others = (categorical(log_probs, uniforms[:, 2]) - 1).clamp(min=0).unsqueeze(1)
        number = torch.arange(log_a.shape[1], device=log_a.device)
        ratio = (self._end(part) / appears.exp()).clamp(max=1.0).unsqueeze(1)
        log_probs = log_binomials(others, number, ratio).masked_fill(number > others, -torch.inf)
        appear = 1 + categorical(log_probs, uniforms[:, 3])
        return self._jump(part, appear.masked_fill(is_complete, 0))

    def follow(self, log_a: Tensor, log_time: Tensor, times: Tensor, /) -> PlannedJump:
        """All tokens whose times lie in the part of the largest."""
        latest = times.amax(1)
        part = self._part(latest)
        due = (times > 0) & (self._part(times) == part.unsqueeze(1))
        number = due.sum(1)
        jump = self._jump(part, number)
        log_appear = log_thinned(log_a, jump.log_time, self._end(part) / jump.log_time.exp(), number)
        survival = log_total(log_a, jump.log_time) - log_total(log_a, log_time)
        log_width = -torch.full_like(log_time, self.num_steps).log()
        log_weight = survival + log_appear - number * log_width
        log_weight = torch.where(latest > 0, log_weight, log_none_missing(log_a, log_time))
        return PlannedJump(jump, due, log_weight)

    def _jump(self, part: Tensor, number: Tensor) -> Jump:
        return Jump(number, self._start(part).log(), self._end(part).log())

    def _part(self, time: Tensor) -> Tensor:
        """Which part a time lies in; part 0 is that below 1."""
        return ((1 - time) * self.num_steps).long().clamp(max=self.num_steps - 1)

    def _part_from(self, log_time: Tensor) -> Tensor:
        """The part that starts at a time."""
        return ((1 - log_time.exp()) * self.num_steps).round().long().clamp(max=self.num_steps - 1)

    def _start(self, part: Tensor) -> Tensor:
        return (self.num_steps - part).double() / self.num_steps

    def _end(self, part: Tensor) -> Tensor:
        return (self.num_steps - part - 1).double() / self.num_steps
