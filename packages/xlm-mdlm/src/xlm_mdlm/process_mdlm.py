"""The reverse process: with which probability a cell is unmasked, or masked again, from time t to s < t.

Forward, each cell of x_0 is masked independently, q(x_t | x_0) = alpha_t delta(x_0) + (1 - alpha_t)
delta(MASK) with alpha_t falling from 1 to 0 (Sahoo et al. 2024, arXiv:2406.07524, section 3). Its posterior
is

    delta(x_t)                                                                         if x_t is not MASK,
    ((alpha_s - alpha_t) delta(x_0) + (1 - alpha_s) delta(MASK)) / (1 - alpha_t)       if it is,

and the model puts its prediction p_theta(x_0 | x_t) in the place of x_0. *Whether* a cell is unmasked does
not depend on the prediction, so it can be decided before the network is evaluated.

All tensors of times are float64: near t = 0 the differences of alphas would vanish in float32.
"""

from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from xlm.modules import NoiseSchedule

RemaskRule = Literal["cap", "rescale"]

_LEAST_ALPHA = 1e-4


def time_grid(num_steps: int) -> Float64[Tensor, " times"]:
    """The times 1, 1 - 1/N, ..., 1/N, 0 of N steps, shape (N + 1,)."""
    return torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps


def noise_of_alpha(alpha: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """-log alpha, the total noise: the input of a time-conditioned network.

    The published network has this input. The posteriors depend on t through alpha_t alone, so it says as much
    as t does. It grows without end as alpha falls to 0 and is cut at alpha = 1e-4, where next to everything
    is masked.

    Args:
        alpha: Probabilities that a cell is clean, in [0, 1], of any shape.

    Returns:
        Noise in [0, 9.22], of the same shape.
    """
    # Rounding can make alpha exceed 1 and -log(1) is -0: neither sign is valid.
    return -alpha.clamp(_LEAST_ALPHA, 1.0).log() + 0.0


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
