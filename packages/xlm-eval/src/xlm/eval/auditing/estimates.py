"""Means over draws with their standard errors, and the tests of an audit: rigorous, or 6 standard errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xlm.eval.auditing.language import Texts

DEVIATIONS = 6.0
"""Standard errors that a correct mean may be away: exceeded with probability 2e-9 if it is normal."""
ERROR_PROBABILITY = 1e-6
"""Of each test; that of a comparison of many texts is split among them."""
ROUNDING = 1e-9
"""What float64 may be away where nothing is drawn."""
ROWS_PER_CALL = 20_000
"""Rows that a function gets at once."""


@dataclass(frozen=True)
class Estimate:
    """A value for each text, as a mean over draws."""

    mean: Tensor
    """(texts,) float64."""
    error: Tensor
    """(texts,) standard errors; 0 where all draws are equal."""

    @staticmethod
    def of(draws: Tensor) -> "Estimate":
        """The mean of draws (texts, draws)."""
        draws = draws.double()
        number = draws.shape[1]
        spread = draws.std(1) if number > 1 else torch.zeros(len(draws), dtype=torch.float64)
        # Equal draws differ by rounding only.
        is_constant = (draws - draws[:, :1]).abs().amax(1) <= ROUNDING * draws[:, 0].abs().clamp(min=1)
        error = torch.where(is_constant, 0.0, spread / math.sqrt(number))
        return Estimate(draws.mean(1), error)

    def weighted(self, weights: Tensor) -> "Number":
        """The sum over texts of weight times value."""
        # A text of weight 0 is left out, so that an infinite value there does no harm.
        used = weights != 0
        error = (weights[used] * self.error[used]).square().sum().sqrt()
        return Number(float((weights[used] * self.mean[used]).sum()), float(error))


@dataclass(frozen=True)
class Number:
    """A mean with its standard error."""

    value: float
    error: float

    @property
    def margin(self) -> float:
        """How far it may be away from its expectation."""
        return DEVIATIONS * self.error + ROUNDING

    def __str__(self) -> str:
        return f"{self.value:.6g}" + (f" ± {self.error:.2g}" if self.error > 0 else "")


def in_pieces(function: Callable[[Texts], Tensor], texts: Texts) -> Tensor:
    """A function of many texts, evaluated on some at a time: (texts,)."""
    pieces = torch.arange(len(texts)).split(ROWS_PER_CALL)
    return torch.cat([function(texts[piece]).detach() for piece in pieces])


def estimate(function: Callable[[Texts], Tensor], texts: Texts, num_draws: int) -> Estimate:
    """The mean of a function over draws; a call has each text many times."""
    first = Estimate.of(in_pieces(function, texts.times(2)).view(len(texts), 2))
    if not bool(first.error.any()):  # nothing is drawn
        return first
    return Estimate.of(in_pieces(function, texts.times(num_draws)).view(len(texts), num_draws))


def sum_of_probabilities(nll: Estimate) -> Number:
    """Sum over texts of exp(-nll): at most 1 if nll is an upper bound of -log p (Kraft's inequality).

    exp of a noisy mean is too large on average, by half of its variance; this is subtracted.
    """
    p = (-nll.mean).exp()
    square = torch.where(p > 0, p * nll.error.square(), 0.0)
    error = torch.where(p > 0, p * nll.error, 0.0).square().sum().sqrt()
    return Number(float((p - square / 2).sum()), float(error))


def surprise(count: Tensor, number: int, low: Tensor, high: Tensor) -> Tensor:
    """Exponent of Chernoff's bound of a binomial count whose chance lies in [low, high]; 0 if it may be so.

    Of n draws with chance p a fraction f or a more extreme one is seen with probability at most
    2 exp(-n KL(f, p)): no normal approximation, so it holds for rare texts too.
    """
    fraction = count.double() / number
    chance = torch.minimum(torch.maximum(fraction, low), high).clamp(0, 1)
    return number * (
        torch.special.xlogy(fraction, fraction)
        - torch.special.xlogy(fraction, chance)
        + torch.special.xlogy(1 - fraction, 1 - fraction)
        - torch.special.xlogy(1 - fraction, 1 - chance)
    )


def surprise_limit(comparisons: int) -> float:
    """Exponent that one of many comparisons exceeds with the probability of an error."""
    return math.log(2 * comparisons / ERROR_PROBABILITY)
