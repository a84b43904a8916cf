"""When tokens are inserted: the time of a row falls from 1, and each jump of it brings one token or several.

A clock draws the jumps of a row, from log A_n of the row alone (:mod:`xlm_did.missing_did`). If it is known
how many tokens of a text are missing, it proposes jumps that lead there, in two ways: as the deletion process
has them, or as close to its own draws as the text allows; and it gives the probability of each.

Axes: ``rows``, ``numbers`` of missing tokens, ``width`` tokens of a text.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from xlm.modules import categorical
from xlm_did.missing_did import (
    log_any_appears,
    log_binomials,
    log_density,
    log_none_missing,
    log_probs_of_more,
    log_thinned,
    log_total,
    next_time,
)

NUM_UNIFORMS = 5
"""Uniform numbers that a jump takes, the last one in :class:`xlm_did.rounds_did.Rounds` alone."""


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
class Odds:
    """How probable a jump is, in three ways, as logarithms: densities where times are real numbers."""

    drawn: Float64[Tensor, " rows"]
    """For :meth:`Clock.draw`; where no token is missing, that the row is complete."""
    guided: Float64[Tensor, " rows"]
    """For :meth:`Clock.guide`."""
    planned: Float64[Tensor, " rows"]
    """For :meth:`Clock.plan` with uniform times, and that its tokens come in a certain order."""


class Clock(Protocol):
    """Jumps of rows with log A_n (rows, numbers) from their times (rows,).

    What is drawn comes from numbers in (0, 1) of shape (rows, NUM_UNIFORMS). ``missing`` (rows,) tokens of a
    text are to be inserted; where there is none, the row is complete.
    """

    def draw(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """The next jump."""
        ...

    def guide(self, log_a: Tensor, log_time: Tensor, missing: Tensor, uniforms: Tensor, /) -> Jump:
        """The next jump of rows whose missing tokens are known to be so many."""
        ...

    def plan(self, times: Tensor, /) -> Jump:
        """The next jump if missing tokens appear at ``times`` (rows, width); 0: not missing."""
        ...

    def weigh(self, log_a: Tensor, log_time: Tensor, missing: Tensor, jump: Jump, /) -> Odds:
        """The probabilities of a jump that was guided or planned."""
        ...

    def log_prob(self, log_a: Tensor, log_time: Tensor, jump: Jump, /) -> Tensor:
        """(rows,) nats of a jump that :meth:`draw` may draw; of its density where the time is exact."""
        ...


class FirstHitting:
    """One token at a time, each at the exact time of its appearance."""

    def draw(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor, /) -> Jump:
        """Stop with the probability that nothing is missing, else wait for the next token."""
        is_complete = uniforms[:, 0] < log_none_missing(log_a, log_time).exp()
        appears = next_time(log_a, log_time, uniforms[:, 1])
        return Jump((~is_complete).long(), appears, appears)

    def guide(self, log_a: Tensor, log_time: Tensor, missing: Tensor, uniforms: Tensor, /) -> Jump:
        """The time of the next token as it is drawn, given that there is one."""
        appears = next_time(log_a, log_time, uniforms[:, 1])
        return Jump((missing > 0).long(), appears, appears)

    def plan(self, times: Tensor, /) -> Jump:
        """The largest time."""
        latest = times.amax(1)
        log_next = latest.where(latest > 0, 1.0).log()
        return Jump((latest > 0).long(), log_next, log_next)

    def weigh(self, log_a: Tensor, log_time: Tensor, missing: Tensor, jump: Jump, /) -> Odds:
        """Densities of the time; a planned one has the density 1."""
        appears, zero = log_density(log_a, log_time, jump.log_next), torch.zeros_like(log_time)
        drawn = appears.where(missing > 0, log_none_missing(log_a, log_time))
        guided = (appears - log_any_appears(log_a, log_time, zero)).where(missing > 0, zero)
        return Odds(drawn, guided, zero)

    def log_prob(self, log_a: Tensor, log_time: Tensor, jump: Jump, /) -> Tensor:
        """(rows,) nats of the density of the time, or of the probability that nothing is missing."""
        density = log_density(log_a, log_time, jump.log_next)
        return density.where(jump.number > 0, log_none_missing(log_a, log_time))


@dataclass(frozen=True)
class Steps:
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
        part, appears = self._part_of_next(log_a, log_time, uniforms[:, 1])
        # Of a complete row nothing may be possible: it draws from a distribution of its own.
        log_probs = log_probs_of_more(log_a, appears).masked_fill(is_complete.unsqueeze(1), 0.0)
        others = (categorical(log_probs, uniforms[:, 2]) - 1).clamp(min=0).unsqueeze(1)
        number = torch.arange(log_a.shape[1], device=log_a.device)
        ratio = (self._end(part) / appears.exp()).clamp(max=1.0).unsqueeze(1)
        log_probs = log_binomials(others, number, ratio).masked_fill(number > others, -torch.inf)
        appear = 1 + categorical(log_probs, uniforms[:, 3])
        return self._jump(part, appear.masked_fill(is_complete, 0))

    def guide(self, log_a: Tensor, log_time: Tensor, missing: Tensor, uniforms: Tensor, /) -> Jump:
        """The next part as it is drawn, and one of its possible numbers in proportion to the probabilities.

        At most what is missing can appear, and in the last part all of it.
        """
        part, _ = self._part_of_next(log_a, log_time, uniforms[:, 1])
        log_probs = self._log_possible(log_a, part, missing)
        # In a row that can have no jump any number is drawn: nothing is missing, or its weight is 0.
        has_none = (log_probs == -torch.inf).all(1)
        number = categorical(log_probs.masked_fill(has_none.unsqueeze(1), 0.0), uniforms[:, 2])
        return self._jump(part, number.minimum(missing))

    def plan(self, times: Tensor, /) -> Jump:
        """All tokens whose times lie in the part of the largest."""
        part = self._part(times.amax(1))
        return self._jump(part, ((times > 0) & (self._part(times) == part.unsqueeze(1))).sum(1))

    def weigh(self, log_a: Tensor, log_time: Tensor, missing: Tensor, jump: Jump, /) -> Odds:
        """Probabilities of the part and of the number."""
        number, part, zero = jump.number, self._part_from(jump.log_time), torch.zeros_like(log_time)
        log_possible = self._log_possible(log_a, part, missing)
        appear = log_possible.gather(1, number.unsqueeze(1)).squeeze(1)
        survival = log_total(log_a, jump.log_time) - log_total(log_a, log_time)
        ratio = self._end(part) / self._start(part)
        in_part = survival + log_any_appears(log_a, jump.log_time, ratio)
        guided = in_part - log_any_appears(log_a, log_time, zero) + appear - log_possible.logsumexp(1)
        planned = -number * math.log(self.num_steps) - torch.lgamma(number.double() + 1)
        return Odds(
            drawn=(survival + appear).where(missing > 0, log_none_missing(log_a, log_time)),
            guided=guided.where(missing > 0, zero),
            planned=planned,
        )

    def log_prob(self, log_a: Tensor, log_time: Tensor, jump: Jump, /) -> Tensor:
        """(rows,) nats of a part and its number of tokens, or of the probability that nothing is missing."""
        ratio = self._end(self._part_from(jump.log_time)) / jump.log_time.exp()
        log_appear = log_thinned(log_a, jump.log_time, ratio, int(jump.number.max()))
        appear = log_appear.gather(1, jump.number.unsqueeze(1)).squeeze(1)
        survival = log_total(log_a, jump.log_time) - log_total(log_a, log_time)
        return (survival + appear).where(jump.number > 0, log_none_missing(log_a, log_time))

    def _log_possible(self, log_a: Tensor, part: Tensor, missing: Tensor) -> Tensor:
        """(rows, most + 1) log P(so many tokens appear in a part), -inf if the text does not allow it."""
        log_probs = log_thinned(
            log_a, self._start(part).log(), self._end(part) / self._start(part), int(missing.max())
        )
        number, missing = torch.arange(log_probs.shape[1], device=log_a.device), missing.unsqueeze(1)
        is_last = (part == self.num_steps - 1).unsqueeze(1)
        possible = (number >= 1) & (number <= missing) & (~is_last | (number == missing))
        return log_probs.masked_fill(~possible, -torch.inf)

    def _part_of_next(self, log_a: Tensor, log_time: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """The part in which the next token appears, given that one does, and log of its time."""
        appears = next_time(log_a, log_time, uniforms)
        return self._part(appears.exp()).maximum(self._part_from(log_time)), appears

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
        return self._start(part + 1)
