"""Noise schedules: the probability that a token is still clean, as a function of time.

Convention (that of masked diffusion, Sahoo et al. 2024, arXiv:2406.07524): time runs from t = 0 (clean) to
t = 1 (noise), and each token of x_0 is noised independently,

    q(x_t | x_0) = alpha(t) delta(x_0) + (1 - alpha(t)) delta(MASK),

with alpha decreasing, from alpha(0) = 1 to alpha(1) = eps close to 0 where the schedule is complete. A
schedule is a frozen dataclass with four methods on tensors of any shape, each computed in the dtype of its
argument, and one property (:class:`NoiseSchedule`):

    alpha(t)        probability that a token is clean at time t
    d_alpha(t)      its derivative by t, at most 0
    inverse(alpha)  the time at which alpha is reached; an alpha in [0, eps) gives a time of 1 or just above
    loss_weight(t)  -alpha'(t) / (1 - alpha(t)), the weight of the cross-entropy of masked tokens in the
                    continuous-time bound of the paper; it grows like 1/t towards t = 0
    is_complete     whether alpha runs from 1 to 0 up to eps, without which the bound does not hold: part of
                    its integral is missing, and generation does not start from all MASK

Families whose time runs from noise to clean use the same classes with 1 - t in the place of t: the
probability of a clean token is alpha(1 - t) and the hazard of becoming clean is loss_weight(1 - t).

A new schedule is one more such class: nothing to inherit, nothing to register. The formulas are arranged so
that they keep their relative precision at both ends, where the textbook forms cancel (1 - cos near t = 0,
1 - (1 - eps) t near t = 1).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class NoiseSchedule(Protocol):
    """What a schedule has; the conventions stand at the top of this file."""

    @property
    def is_complete(self) -> bool:
        """Whether alpha(0) = 1 and alpha(1) = 0, up to eps."""
        ...

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        ...

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        ...

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        ...

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t))."""
        ...


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

    @property
    def is_complete(self) -> bool:
        """True: alpha runs from 1 to eps."""
        return True

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

    @property
    def is_complete(self) -> bool:
        """True: alpha runs from 1 to eps."""
        return True

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


@dataclass(frozen=True)
class CosineSquared:
    """Squared cosine noise: alpha(t) = eps + (1 - eps) cos^2(pi t / 2).

    Slow at both ends: 1 - alpha grows like t^2 near t = 0, alpha - eps falls like (1 - t)^2 near t = 1.

    Args:
        eps: Probability that a token is still clean at t = 1, in [0, 1).

    Raises:
        ValueError: If eps is outside [0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    @property
    def is_complete(self) -> bool:
        """True: alpha runs from 1 to eps."""
        return True

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return self.eps + (1 - self.eps) * _cos(t).square()

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return -(1 - self.eps) * math.pi * _sin(t) * _cos(t)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return 2 / math.pi * torch.atan2((1 - alpha).sqrt(), (alpha - self.eps).clamp(min=0).sqrt())

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = pi / tan(pi t / 2) for any eps."""
        return math.pi * _cos(t) / _sin(t)


@dataclass(frozen=True)
class Sine:
    """Sine noise: alpha(t) = 1 - sin(pi t / 2).

    1 - alpha grows like t near t = 0, alpha falls like (1 - t)^2 near t = 1.
    """

    @property
    def is_complete(self) -> bool:
        """True: alpha runs from 1 to 0."""
        return True

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return 2 * torch.sin(math.pi / 4 * (1 - t)).square()

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return -math.pi / 2 * _cos(t)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return 2 / math.pi * torch.atan2(1 - alpha, (alpha * (2 - alpha)).sqrt())

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = (pi / 2) / tan(pi t / 2)."""
        return math.pi / 2 * _cos(t) / _sin(t)


@dataclass(frozen=True)
class Polynomial:
    """Polynomial noise: alpha(t) = (1 - t)^k.

    Args:
        exponent: The power k, greater than 0. With k = 1 this is :class:`LogLinear` with eps = 0; with k > 1
            tokens are masked earlier, with k < 1 later, at a weight that grows without limit towards t = 1.

    Raises:
        ValueError: If exponent is not a finite number greater than 0.
    """

    exponent: float

    def __post_init__(self) -> None:
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"exponent must be a finite number greater than 0, got {self.exponent}")

    @property
    def is_complete(self) -> bool:
        """True: alpha runs from 1 to 0."""
        return True

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return (1 - t) ** self.exponent

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return -self.exponent * (1 - t) ** (self.exponent - 1)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return -torch.expm1(alpha.log() / self.exponent)

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = k (1 - t)^(k - 1) / (1 - (1 - t)^k)."""
        return self.d_alpha(t) / torch.expm1(self.exponent * torch.log1p(-t))


@dataclass(frozen=True)
class Linear:
    """Noise sigma(t) = sigma_min + t (sigma_max - sigma_min) in total, alpha(t) = exp(-sigma(t)).

    Args:
        sigma_min: Total noise at t = 0, at least 0.
        sigma_max: Total noise at t = 1, greater than sigma_min.

    Raises:
        ValueError: If not 0 <= sigma_min < sigma_max < infinity.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"0 <= sigma_min < sigma_max is required, got {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def is_complete(self) -> bool:
        """False: alpha runs from exp(-sigma_min) to exp(-sigma_max) only."""
        return False

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return torch.exp(-self._sigma(t))

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        return -(self.sigma_max - self.sigma_min) * self.alpha(t)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return (-alpha.log() - self.sigma_min) / (self.sigma_max - self.sigma_min)

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = sigma'(t) / (exp(sigma(t)) - 1)."""
        return (self.sigma_max - self.sigma_min) / torch.expm1(self._sigma(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (1 - t) + self.sigma_max * t


@dataclass(frozen=True)
class Geometric:
    """Noise sigma(t) = sigma_min^(1 - t) sigma_max^t in total, alpha(t) = exp(-sigma(t)).

    Args:
        sigma_min: Total noise at t = 0, greater than 0.
        sigma_max: Total noise at t = 1, greater than sigma_min.

    Raises:
        ValueError: If not 0 < sigma_min < sigma_max < infinity.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"0 < sigma_min < sigma_max is required, got {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def is_complete(self) -> bool:
        """False: alpha runs from exp(-sigma_min) to exp(-sigma_max) only."""
        return False

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability that a token is clean at time t."""
        return torch.exp(-self._sigma(t))

    def d_alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Derivative of alpha by t."""
        sigma = self._sigma(t)
        return -self._log_ratio * sigma * torch.exp(-sigma)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Time at which alpha is reached."""
        return torch.log(-alpha.log() / self.sigma_min) / self._log_ratio

    def loss_weight(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-alpha'(t) / (1 - alpha(t)) = sigma'(t) / (exp(sigma(t)) - 1)."""
        sigma = self._sigma(t)
        return self._log_ratio * sigma / torch.expm1(sigma)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._log_ratio * t)


def _sin(t: Tensor) -> Tensor:
    """sin(pi t / 2)."""
    return torch.sin(math.pi / 2 * t)


def _cos(t: Tensor) -> Tensor:
    """cos(pi t / 2), as a sine so that it keeps its relative precision near t = 1."""
    return torch.sin(math.pi / 2 * (1 - t))


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(f"eps must be in [0, 1), got {eps}")
