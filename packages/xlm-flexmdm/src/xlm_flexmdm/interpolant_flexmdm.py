"""The joint interpolant: each token is inserted as MASK at a random time T1 and unmasked at a later time T2.

Time runs from t = 0 (nothing but the given tokens) to t = 1 (the whole text). With schedules alpha for
insertion and beta for unmasking, both increasing from 0 to 1, each token independently has (Kim et al. 2025,
arXiv:2509.01025, section 3)

    P(T1 <= t) = alpha(t),      P(T2 <= t | T1) = (beta(t) - beta(T1)) / (1 - beta(T1))  on [T1, 1].

At time t a token is absent if t < T1, MASK if T1 <= t < T2, and clean after that. A token that is absent is
inserted at the rate alpha' / (1 - alpha), a masked one unmasked at the rate beta' / (1 - beta), whatever its
T1: the two hazards.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from xlm.modules import NoiseSchedule

Sampler = Literal["hazard_integrated", "tau_leaping"]


@dataclass(frozen=True)
class Interpolant:
    """The two schedules, read in the direction of generation, and the time input of the network.

    With s one of :mod:`xlm.modules`, alpha(t) = s.alpha(1 - t) and its hazard is s.loss_weight(1 - t). The
    schedules of the authors' code are

        t                     LogLinear(eps=0)
        sin(pi t / 2)         Cosine(eps=0)
        1 - cos(pi t / 2)     Sine()
        t^k                   Polynomial(k)
        exp(-a^(1 - t) b^t)   Geometric(sigma_min=b, sigma_max=a), not from 0 to 1: no likelihood.

    Args:
        insertion: alpha.
        unmasking: beta.
        time_input: Time input of the network: "t", or "alpha" for alpha(t), through which alone the posterior
            of a text depends on t if the schedules are equal.

    Raises:
        ValueError: If time_input is neither of the two.
    """

    insertion: NoiseSchedule
    unmasking: NoiseSchedule
    time_input: Literal["t", "alpha"] = "t"

    def __post_init__(self) -> None:
        if self.time_input not in ("t", "alpha"):
            raise ValueError(f"time_input must be 't' or 'alpha', got {self.time_input!r}")

    def alpha(self, t: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Probability that a token is present at time t."""
        return self.insertion.alpha(1 - t)

    def beta(self, t: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Probability that a token that is present from time 0 on is clean at time t."""
        return self.unmasking.alpha(1 - t)

    def insertion_hazard(self, t: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """alpha'(t) / (1 - alpha(t)), the rate at which an absent token is inserted."""
        return self.insertion.loss_weight(1 - t)

    def unmasking_hazard(self, t: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """beta'(t) / (1 - beta(t)), the rate at which a masked token is unmasked."""
        return self.unmasking.loss_weight(1 - t)

    def network_time(self, t: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """The time input of the network."""
        return t if self.time_input == "t" else self.alpha(t)

    @property
    def endpoints(self) -> tuple[float, float, float, float]:
        """alpha(0), alpha(1), beta(0) and beta(1)."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
        alpha, beta = self.alpha(ends), self.beta(ends)
        return float(alpha[0]), float(alpha[1]), float(beta[0]), float(beta[1])

    @cached_property
    def is_complete(self) -> bool:
        """Whether both schedules run from 0 to 1, so that generation starts empty and ends clean."""
        return all(abs(value - end) < 1e-9 for value, end in zip(self.endpoints, (0, 1, 0, 1), strict=True))

    def states(
        self,
        t: Float64[Tensor, "rows 1"],
        insertion_uniforms: Float64[Tensor, "rows target"],
        unmasking_uniforms: Float64[Tensor, "rows target"],
    ) -> tuple[Bool[Tensor, "rows target"], Bool[Tensor, "rows target"]]:
        """Draw the state of each token at time t.

        T1 is the time at which alpha reaches the first uniform number. Given T1 <= t, a token is still MASK
        with probability (1 - beta(t)) / (1 - beta(T1)). Only that is needed: T2 itself never is.

        Args:
            t: Time of each row, shape (rows, 1).
            insertion_uniforms: One number in (0, 1) per token, shape (rows, target).
            unmasking_uniforms: The same, independent of the first.

        Returns:
            Whether each token is present, and whether it is present as MASK, both of shape (rows, target).
        """
        present = insertion_uniforms < self.alpha(t)
        # A level below alpha(0) > 0 is present from time 0 on; its inverse would lie outside [0, 1].
        insertion_time = self.insertion.inverse(insertion_uniforms).clamp(0, 1).neg_().add_(1)
        masked = (1 - self.beta(insertion_time)).mul_(unmasking_uniforms) < 1 - self.beta(t)
        return present, present & masked


@dataclass(frozen=True)
class Steps:
    """What the steps of a sampler do, each from t to s."""

    time: Float64[Tensor, " steps"]
    """Time input of the network at t."""
    missing_chance: Float64[Tensor, " steps"]
    """1 - alpha(t)."""
    masked_chance: Float64[Tensor, " steps"]
    """Probability that a mask of the start is still one after the step; decreasing, at last 0."""
    insertion_factor: Float64[Tensor, " steps"]
    """What g is multiplied by for the mean number of insertions."""

    @staticmethod
    def of(interpolant: Interpolant, num_steps: int, sampler: Sampler) -> "Steps":
        """N equal steps.

        Raises:
            ValueError: If "tau_leaping" has an infinite hazard at t = 0.
        """
        # On the CPU whatever the default device: the steps are plain numbers.
        grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device="cpu")
        start, end = grid[:-1], grid[1:]
        if sampler == "hazard_integrated":
            insertion = (interpolant.alpha(end) - interpolant.alpha(start)) / (1 - interpolant.alpha(start))
            unmasking = (interpolant.beta(end) - interpolant.beta(start)) / (1 - interpolant.beta(start))
        else:
            insertion = interpolant.insertion_hazard(start) / num_steps
            unmasking = -torch.expm1(-interpolant.unmasking_hazard(start) / num_steps)
            if not bool(insertion.isfinite().all()):
                raise ValueError(
                    "sampler='tau_leaping' holds the hazard of insertion at its value at t = 0, which is "
                    "infinite with this schedule: use sampler='hazard_integrated'"
                )
        insertion[-1], unmasking[-1] = 0.0, 1.0
        return Steps(
            time=interpolant.network_time(start),
            missing_chance=1 - interpolant.alpha(start),
            masked_chance=(1 - unmasking).cumprod(0),
            insertion_factor=insertion,
        )

    def to(self, device: torch.device) -> "Steps":
        """The same on a device."""
        columns = (self.time, self.missing_chance, self.masked_chance, self.insertion_factor)
        return Steps(*(column.to(device) for column in columns))
