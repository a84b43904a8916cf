"""The reverse process of uniform-state diffusion at one cell, and what the network predicts.

With z the token of a cell at time t, x its clean token, s < t, a = alpha_t / alpha_s, and K possible tokens,

    q(x_s = v | z, x) ~ (a 1[v = z] + (1 - a) / K) (alpha_s 1[v = x] + (1 - alpha_s) / K),

which is normalised by M = alpha_t 1[z = x] + (1 - alpha_t) / K (Schiff et al. 2024, arXiv:2412.10193). The
model puts a distribution p of the network in the place of 1[. = x]: the *plug-in*. It is not linear in p,
since M is not, so the best p is not the *denoising posterior*

    d(v) = P(x = v | x_t),      what a denoiser learns by cross entropy,

but the *leave-one-out posterior* m(v) = P(x = v | x_t without this cell): a prediction that ignores the
cell's own token (arXiv:2605.22765). A network trained by the bound has m as its output. Both are related by

    d(v) ~ m(v) (alpha_t 1[v = z] + (1 - alpha_t) / K),

so the logits of d are those of m with log(1 + K alpha_t / (1 - alpha_t)) added at the own token.

Every distribution of the next state of a cell is a mixture of three: keep z, draw from p, draw uniformly.
:class:`Mixture` has their weights, which need p at z only, so that p is drawn from at the cells that need it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor


def own_token_bonus(
    one_minus_alpha: Float64[Tensor, "*cells"], num_possible: Int[Tensor, "*cells"]
) -> Float64[Tensor, "*cells"]:
    """log(1 + K alpha / (1 - alpha)): logit of the own token in the denoiser minus that in leave-one-out.

    Args:
        one_minus_alpha: Probability that a cell is noised, above 0.
        num_possible: K.
    """
    alpha = 1 - one_minus_alpha
    return (one_minus_alpha + num_possible * alpha).log() - one_minus_alpha.log()


@dataclass(frozen=True)
class Mixture:
    """Distribution of the next token of each cell: weights (cells,) of its three parts, which add up to 1."""

    keep: Float64[Tensor, " cells"]
    """Of the cell's own token z."""
    predict: Float64[Tensor, " cells"]
    """Of the network's prediction p."""
    noise: Float64[Tensor, " cells"]
    """Of the uniform distribution over the K possible tokens."""

    def mixed(self, other: "Mixture", share: float) -> "Mixture":
        """``1 - share`` of this one and ``share`` of another."""
        return Mixture(
            keep=self.keep.lerp(other.keep, share),
            predict=self.predict.lerp(other.predict, share),
            noise=self.noise.lerp(other.noise, share),
        )

    def log_prob(
        self,
        log_p: Float64[Tensor, " cells"],
        is_own: Tensor,
        num_possible: Int[Tensor, " cells"],
    ) -> Float64[Tensor, " cells"]:
        """Log-probability of a token of each cell.

        Args:
            log_p: log p of the token.
            is_own: Whether it is the cell's own token z, shape (cells,).
            num_possible: K.
        """
        return (self.keep * is_own + self.predict * log_p.exp() + self.noise / num_possible).log()


def plug_in(
    p_own: Float64[Tensor, " cells"],
    num_possible: Int[Tensor, " cells"],
    *,
    alpha_t: float,
    alpha_s: float,
) -> Mixture:
    """The posterior q(x_s | x_t, x) with p in the place of x: the ancestral step.

    Args:
        p_own: p at the cell's own token.
        num_possible: K.
        alpha_t: Probability that a cell is not noised now, in [0, 1).
        alpha_s: The same after the step, from alpha_t to 1 and above 0.
    """
    kept = alpha_t / alpha_s
    share = 1.0 / num_possible.double()
    total = alpha_t * p_own + (1 - alpha_t) * share
    return Mixture(
        keep=kept * (alpha_s * p_own + (1 - alpha_s) * share) / total,
        predict=(1 - kept) * alpha_s * share / total,
        noise=(1 - kept) * (1 - alpha_s) * share / total,
    )


def renoised_denoiser(
    p_own: Float64[Tensor, " cells"],
    num_possible: Int[Tensor, " cells"],
    *,
    alpha_t: float,
    alpha_s: float,
) -> Mixture:
    """alpha_s d + (1 - alpha_s) / K: the clean token is drawn from the denoiser and noised again.

    Arguments are those of :func:`plug_in`.
    """
    share = 1.0 / num_possible.double()
    total = alpha_t * p_own + (1 - alpha_t) * share
    return Mixture(
        keep=alpha_s * alpha_t * p_own / total,
        predict=alpha_s * (1 - alpha_t) * share / total,
        noise=torch.full_like(p_own, 1 - alpha_s),
    )


def renoised_prediction(p_own: Float64[Tensor, " cells"], *, alpha: float) -> Mixture:
    """alpha m + (1 - alpha) / K: the distribution of a cell's token given all others, at noise level alpha.

    Args:
        p_own: p at the cell's own token, of which only the shape counts.
        alpha: Probability that a cell is not noised.
    """
    return Mixture(
        keep=torch.zeros_like(p_own),
        predict=torch.full_like(p_own, alpha),
        noise=torch.full_like(p_own, 1 - alpha),
    )
