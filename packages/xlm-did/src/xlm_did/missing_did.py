"""How many tokens are missing from a row: the closed form in time, and when the next one appears.

Each token of a text x is deleted by time u with probability u, so a rest y of m tokens comes from a text of
m + n tokens with probability N(y, x) (1 - u)^m u^n, N(y, x) being the number of its embeddings in x. Hence

    P(n missing | y, u) = A_n(y) u^n / Z(y, u),    Z = sum_n A_n u^n

with A_n(y) = sum of p(x) N(y, x) over texts x of m + n tokens, free of u. Everything that depends on time
follows from one row of log A_n:

    expected number    sum_n n A_n u^n / Z
    nothing missing    A_0 / Z
    survival           no token appears while time falls from u to u' with probability Z(u') / Z(u).

Axes: ``rows``, ``numbers`` n = 0, 1, ... of missing tokens. Times are logarithms, log u <= 0, in float64.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_HALVINGS = 60
"""Of the interval that holds the next time: beyond the precision of float64."""
_TERMS_AT_ONCE = 2**22
"""Pairs of numbers, missing and appearing, of the rows whose probabilities are computed together."""


def log_numbers(
    length_logits: Float[Tensor, "rows numbers"],
    num_kept: Int[Tensor, " rows"],
    budget: Int[Tensor, " rows"],
) -> Float64[Tensor, "rows numbers"]:
    """log A_n up to a constant of the row: the logits plus log C(m + n, n), -inf beyond the budget.

    C(m + n, n) is the number of subsets of n tokens of the text, so the logits hold the logarithm of the mean
    over subsets, which varies little with n where the binomial coefficients span hundreds of nats.

    Args:
        length_logits: Of the length head, shape (rows, numbers).
        num_kept: m, the number of tokens in the row that are not given, shape (rows,).
        budget: The most tokens that may be missing, shape (rows,).
    """
    number = torch.arange(length_logits.shape[1], device=length_logits.device)
    kept = num_kept.to(torch.float64).unsqueeze(1)
    log_subsets = torch.lgamma(kept + number + 1) - torch.lgamma(kept + 1) - torch.lgamma(number.double() + 1)
    logits = length_logits.to(torch.float64) + log_subsets
    return logits.masked_fill(number > budget.unsqueeze(1), -torch.inf)


def log_total(
    log_a: Float64[Tensor, "rows numbers"], log_time: Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """log Z(u)."""
    return log_at(log_a, log_time).logsumexp(1)


def log_expected(
    log_a: Float64[Tensor, "rows numbers"], log_time: Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """Logarithm of the expected number of missing tokens; finite if one may be missing."""
    weighted = log_at(log_a, log_time)[:, 1:] + _counts(log_a).log()
    return weighted.logsumexp(1) - log_total(log_a, log_time)


def log_none_missing(
    log_a: Float64[Tensor, "rows numbers"], log_time: Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"]:
    """log P(nothing is missing)."""
    return log_a[:, 0] - log_total(log_a, log_time)


def log_density(
    log_a: Float64[Tensor, "rows numbers"],
    log_time: Float64[Tensor, " rows"],
    log_next: Float64[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """Log-density, with respect to u', of the time u' < u at which the next token appears.

    Survival until u' times the rate, the expected number divided by u': sum_n n A_n u'^(n - 1) / Z(u).
    """
    return log_expected(log_a, log_next) - log_next + log_total(log_a, log_next) - log_total(log_a, log_time)


def log_any_appears(
    log_a: Float64[Tensor, "rows numbers"],
    log_time: Float64[Tensor, " rows"],
    ratio: Float64[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """log P(a token appears while time falls from u to u * ratio); with ratio 0, that any is missing at u.

    (Z(u) - Z(u * ratio)) / Z(u), added up over the numbers, which is precise where it is small.
    """
    share = -torch.expm1(_counts(log_a) * ratio.log().unsqueeze(1))
    return (log_at(log_a, log_time)[:, 1:] + share.log()).logsumexp(1) - log_total(log_a, log_time)


def next_time(
    log_a: Float64[Tensor, "rows numbers"],
    log_time: Float64[Tensor, " rows"],
    uniforms: Float64[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """Draw log u', the time at which the next token appears, given that one does.

    With G(u) = Z(u) - A_0 it is the root of G(u') = v G(u), v uniform. Since G(u v) <= v G(u) and
    G(u v^(1 / n)) >= v G(u), n the largest number, the root is in between; it is found by bisection.

    Args:
        log_a: log A_n, at least two numbers, shape (rows, numbers).
        log_time: log u, shape (rows,).
        uniforms: v in (0, 1), shape (rows,).

    Returns:
        log u', below log u, shape (rows,). Without meaning in a row from which nothing can be missing.
    """
    log_v = uniforms.log()
    goal = log_v + log_at(log_a, log_time)[:, 1:].logsumexp(1)
    low, high = log_time + log_v, log_time + log_v / (log_a.shape[1] - 1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_above = log_at(log_a, middle)[:, 1:].logsumexp(1) > goal
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    return (low + high) / 2


def log_probs_of_more(
    log_a: Float64[Tensor, "rows numbers"], log_time: Float64[Tensor, " rows"]
) -> Float64[Tensor, "rows numbers"]:
    """Unnormalised log P(n tokens were missing | one of them appears at this time)."""
    weighted = log_at(log_a, log_time)
    weighted[:, 1:] += _counts(log_a).log()
    weighted[:, 0] = -torch.inf
    return weighted


def log_thinned(
    log_a: Float64[Tensor, "rows numbers"],
    log_time: Float64[Tensor, " rows"],
    ratio: Float64[Tensor, " rows"],
    most: int,
) -> Float64[Tensor, "rows appear"]:
    """log P(m tokens appear while time falls from u to u * ratio), any number being missing at u.

    sum_n P(n | y, u) C(n, m) (1 - ratio)^m ratio^(n - m), for m = 0, 1, ..., ``most``.

    Args:
        log_a: log A_n, shape (rows, numbers).
        log_time: log u, shape (rows,).
        ratio: u' / u, in [0, 1), shape (rows,).
        most: The largest m.
    """
    number = torch.arange(log_a.shape[1], device=log_a.device)
    appear = torch.arange(most + 1, device=log_a.device).unsqueeze(1)
    at_once = max(_TERMS_AT_ONCE // (len(appear) * len(number)), 1)
    pieces = [
        (some_a.unsqueeze(1) + log_binomials(number, appear, some_ratio.view(-1, 1, 1)))
        .masked_fill(number < appear, -torch.inf)
        .logsumexp(2)
        for some_a, some_ratio in zip(
            log_at(log_a, log_time).split(at_once), ratio.split(at_once), strict=True
        )
    ]
    return torch.cat(pieces) - log_total(log_a, log_time).unsqueeze(1)


def log_binomials(number: Tensor, appear: Tensor, ratio: Tensor) -> Tensor:
    """log of C(n, m) (1 - ratio)^m ratio^(n - m), broadcast; without meaning for m > n."""
    kept = (number - appear).clamp(min=0).double()
    number, appear = number.double(), appear.double()
    log_choices = torch.lgamma(number + 1) - torch.lgamma(appear + 1) - torch.lgamma(kept + 1)
    return log_choices + torch.xlogy(appear, 1 - ratio) + torch.xlogy(kept, ratio)


def _counts(log_a: Tensor) -> Tensor:
    """The numbers from 1 on."""
    return torch.arange(1, log_a.shape[1], device=log_a.device, dtype=torch.float64)


def log_at(log_a: Tensor, log_time: Tensor) -> Tensor:
    """log of A_n u^n, shape (rows, numbers): up to a constant of the row, log P(n missing | y, u)."""
    number = torch.arange(log_a.shape[1], device=log_a.device)
    return log_a + number * log_time.unsqueeze(1)
