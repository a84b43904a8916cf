"""Noise schedules: the probability that a token is still clean, as a function of time.

Convention (that of masked diffusion, Sahoo et al. 2024, arXiv:2406.07524): time runs from t = 0 (clean) to
t = 1 (noise), and each token of x_0 is noised independently,

    q(x_t | x_0) = alpha(t) delta(x_0) + (1 - alpha(t)) delta(MASK),

with alpha decreasing from alpha(0) = 1 to alpha(1) = eps, close to 0. A schedule is a frozen dataclass with
four methods on tensors of any shape, each computed in the dtype of its argument:

    alpha(t)        probability that a token is clean at time t
    d_alpha(t)      its derivative by t, at most 0
    inverse(alpha)  the time at which alpha is reached; an alpha in [0, eps) gives a time just above 1
    loss_weight(t)  -alpha'(t) / (1 - alpha(t)), the weight of the cross-entropy of masked tokens in the
                    continuous-time bound of the paper; it grows like 1/t towards t = 0

A new schedule is one more such class: nothing to inherit, nothing to register. The formulas are arranged so
that they keep their relative precision at both ends, where the textbook forms cancel (1 - cos near t = 0,
1 - (1 - eps) t near t = 1).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogLinear:
    """Log-linear noise: alpha(t) = 1 - (1 - eps) t, so that the loss weight is 1/t for any eps.

    The name comes from the total noise -log alpha (Lou et al. 2024, arXiv:2310.16834); alpha is linear.

    Args:
        eps: Probability that a token is still clean at t = 1, in [0, 1).

    Raises:
        ValueError: If eps is outside [0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return (1 - t) + self.eps * t

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return torch.full_like(t, self.eps - 1)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return (1 - alpha) / (1 - self.eps)

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = 1/t."""
        return 1 / t


@dataclass(frozen=True)
class Cosine:
    """Cosine noise: alpha(t) = eps + (1 - eps) cos(pi t / 2).

    1 - alpha = 2 (1 - eps) sin^2(pi t / 4) grows like t^2 near t = 0, so few tokens are masked for longer
    than with :class:`LogLinear`.

    Args:
        eps: Probability that a token is still clean at t = 1, in [0, 1).

    Raises:
        ValueError: If eps is outside [0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return self.eps + (1 - self.eps) * torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return 4 / math.pi * torch.asin(torch.sqrt((1 - alpha) / (2 * (1 - self.eps))))

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = (pi / 2) / tan(pi t / 4) for any eps."""
        return math.pi / 2 / torch.tan(math.pi / 4 * t)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(f"eps must be in [0, 1), got {eps}")
