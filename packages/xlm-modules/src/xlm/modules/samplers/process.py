"""The reverse process of masked diffusion, and revision: which written cells are masked again.

Forward, each cell of x_0 is masked independently, q(x_t | x_0) = alpha_t delta(x_0) + (1 - alpha_t)
delta(MASK) with alpha_t falling from 1 to 0 (Sahoo et al. 2024, arXiv:2406.07524, section 3). Its posterior
is

    delta(x_t)                                                                         if x_t is not MASK,
    ((alpha_s - alpha_t) delta(x_0) + (1 - alpha_s) delta(MASK)) / (1 - alpha_t)       if it is,

and the model puts its prediction p_theta(x_0 | x_t) in the place of x_0. *Whether* a cell is unmasked does
not depend on the prediction, so it can be decided before the network is evaluated.

A revision masks cells again that were masked at the start, at the end of a turn, and not those that the turn
has just written, so that later turns can correct them. A row then runs to the end of its plan, whatever its
text is in between.

All tensors of times are float64: near t = 0 the differences of alphas would vanish in float32.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.schedules import NoiseSchedule

RemaskRule = Literal["cap", "rescale"]


def time_grid(num_steps: int) -> Float64[Tensor, " times"]:
    """The times 1, 1 - 1/N, ..., 1/N, 0 of N steps, shape (N + 1,)."""
    return torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps


def unmask_probability(
    schedule: NoiseSchedule,
    t: Float64[Tensor, "*shape"],
    s: Float64[Tensor, "*shape"],
    *,
    remask: Float64[Tensor, "*shape"] | float = 0.0,
) -> Float64[Tensor, "*shape"]:
    """Probability that a cell masked at time t is unmasked at s.

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    With sigma = 0 it is the posterior above, and composes: from t to r and from r to s is from t to s. With
    sigma > 0 it makes up for the clean cells that are masked again, so that each cell is clean at s with
    probability alpha_s all the same (Wang et al. 2025, arXiv:2503.00307, section 3, theorem 3.1).

    Args:
        schedule: alpha.
        t: Times, in (0, 1], of any shape.
        s: Times, s < t, of the same shape.
        remask: sigma, the probability that a clean cell is masked again, from :func:`remask_probability`.

    Returns:
        Probabilities, of the same shape.
    """
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    return ((alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)).clamp(0.0, 1.0)


def remask_probability(
    schedule: NoiseSchedule,
    t: Float64[Tensor, "*shape"],
    s: Float64[Tensor, "*shape"],
    *,
    rule: RemaskRule,
    eta: float,
) -> Float64[Tensor, "*shape"]:
    """Probability sigma that a cell clean at time t is masked at s.

    This is the remasking of ReMDM (Wang et al. 2025, arXiv:2503.00307). The largest sigma for which the
    probabilities of section 3 stay in [0, 1] is sigma_max = min(1, (1 - alpha_s) / alpha_t). Of the schedules
    of section 4, "cap" takes min(eta, sigma_max) and "rescale" eta * sigma_max.

    Args:
        schedule: alpha.
        t: Times, in (0, 1], of any shape.
        s: Times, s < t, of the same shape.
        rule: "cap" or "rescale".
        eta: In [0, 1]; 0 is no remasking.

    Returns:
        Probabilities, of the same shape.
    """
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    # Of a schedule that ends in alpha_1 = 0, no cell is clean at t = 1, and any sigma does.
    largest = ((1 - alpha_s) / alpha_t.clamp(min=torch.finfo(torch.float64).tiny)).clamp(0.0, 1.0)
    return largest.clamp(max=eta) if rule == "cap" else eta * largest


@dataclass(frozen=True)
class Transitions:
    """The reverse process on a grid of N steps, in float64."""

    alpha: Float64[Tensor, " times"]
    """Probability that a cell is clean, at the N + 1 times from 1 to 0."""
    unmask: Float64[Tensor, " steps"]
    """Probability that a masked cell is written in each step; 1 in the last."""
    remask: Float64[Tensor, " steps"]
    """Probability sigma that a written cell is masked again; 0 in the last."""

    @staticmethod
    def of(alpha: Tensor, unmask: Tensor, remask: Tensor) -> "Transitions":
        """Under a schedule with alpha_0 < 1, too, nothing stays masked."""
        remask[-1], unmask[-1] = 0.0, 1.0
        return Transitions(alpha, unmask, remask)


@dataclass(frozen=True)
class Remask:
    """A step masks written cells again with probability sigma (ReMDM; Wang et al. 2025, arXiv:2503.00307).

    From t to s a masked cell is written with the probability that makes up for sigma (section 3), so each
    cell is clean with probability alpha_s all the same.

    Args:
        rule: "cap" or "rescale": sigma is min(eta, sigma_max) or eta * sigma_max (section 4).
        eta: In [0, 1]; 0 is ancestral sampling.
        t_on: Cells are masked again in steps from t < t_on only, in (0, 1]; 1 is always ("switch").
    """

    rule: RemaskRule
    eta: float
    t_on: float = 1.0
    is_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, "eta", self.eta, "in [0, 1]")
        require(0 < self.t_on <= 1, "t_on", self.t_on, "in (0, 1]")

    def transitions(self, schedule: NoiseSchedule, num_steps: int) -> Transitions:
        """The probabilities of each step."""
        times = time_grid(num_steps)
        sigma = remask_probability(schedule, times[:-1], times[1:], rule=self.rule, eta=self.eta)
        if self.t_on < 1:
            sigma = sigma.where(times[:-1] < self.t_on, 0.0)
        unmask = unmask_probability(schedule, times[:-1], times[1:], remask=sigma)
        return Transitions.of(schedule.alpha(times), unmask, sigma)


@dataclass(frozen=True)
class RemaskLoop:
    """ReMDM's loop (Wang et al. 2025, arXiv:2503.00307, section 4).

    alpha rises to alpha_on, stays there while cells are masked and written again, and rises to 1. It is
    linear in t on [t_on, 1] and on [0, t_off], whatever the noise schedule is. Between t_on and t_off sigma
    is eta, and masked cells are written with probability eta alpha_on / (1 - alpha_on).

    Args:
        eta: In [0, min(1, (1 - alpha_on) / alpha_on)].
        t_on: Start of the loop, in (t_off, 1).
        t_off: Its end, greater than 0.
        alpha_on: Clean share of the cells in it, in (0, 1).
    """

    eta: float
    t_on: float
    t_off: float
    alpha_on: float
    is_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 < self.alpha_on < 1, "alpha_on", self.alpha_on, "in (0, 1)")
        require(0 < self.t_off < self.t_on, "t_off", self.t_off, f"in (0, t_on={self.t_on})")
        require(self.t_on < 1, "t_on", self.t_on, "less than 1")
        most = min(1.0, (1 - self.alpha_on) / self.alpha_on)
        require(0 <= self.eta <= most, "eta", self.eta, f"in [0, {most:.3g}], (1 - alpha_on) / alpha_on")

    def transitions(self, schedule: NoiseSchedule, num_steps: int) -> Transitions:
        """The probabilities of each step; the schedule is not used."""
        times = time_grid(num_steps)
        late = 1 - times * (1 - self.alpha_on) / self.t_off
        early = self.alpha_on * (1 - times) / (1 - self.t_on)
        alpha = late.where(times <= self.t_off, early.clamp(max=self.alpha_on))
        before, after = alpha[:-1], alpha[1:]
        inside = (times[:-1] <= self.t_on) & (times[1:] >= self.t_off)
        sigma = torch.where(inside, self.eta, 0.0).to(torch.float64)
        unmask = ((after - (1 - sigma) * before) / (1 - before)).clamp(0.0, 1.0)
        return Transitions.of(alpha, unmask, sigma)


@dataclass(frozen=True)
class RemaskByConfidence:
    """ReMDM's "conf": the less probable a token was when it was written, the sooner it is masked again.

    sigma of a written cell is sigma_max times its part in the softmax of minus these probabilities over the
    row's written cells (Wang et al. 2025, arXiv:2503.00307, section 4). As in the published code, masked
    cells are written as without remasking, so fewer cells are clean at time s than alpha_s says.
    """

    is_planned: ClassVar[bool] = False

    def transitions(self, schedule: NoiseSchedule, num_steps: int) -> Transitions:
        """The probabilities of each step, with sigma_max as sigma."""
        times = time_grid(num_steps)
        sigma = remask_probability(schedule, times[:-1], times[1:], rule="rescale", eta=1.0)
        unmask = unmask_probability(schedule, times[:-1], times[1:])
        return Transitions.of(schedule.alpha(times), unmask, sigma)


@dataclass(frozen=True)
class P2:
    """Path planning: each turn keeps the cells masked that score lowest (Peng et al. 2025, arXiv:2502.03540).

    The quota gives the number of cells that stay masked. A masked cell competes with the score of its rank,
    as a log-probability, a written one with eta times the log-probability of its token in this evaluation.

    Args:
        eta: At least 0; 0 never masks a written cell again, larger ones do so more often.
    """

    eta: float
    is_planned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.eta >= 0, "eta", self.eta, "at least 0")


Revision = Remask | RemaskLoop | RemaskByConfidence | P2
