"""The integrand of the bound at one cell, F, and its gradient by the logits.

Notation of Schiff et al. 2024 (arXiv:2412.10193): z token of the cell in x_t, x its clean token, K possible
tokens, p the network's leave-one-out prediction, u = 1 - alpha, and n_v = K alpha p_v + u:

    F = sum over v != z of D(r_v, r^_v),     D(a, b) = b - a + a log(a / b) >= 0,
    r_v = (K alpha 1[v = x] + u) / (K alpha 1[z = x] + u),     r^_v = n_v / n_z.

r_v takes three values: with kappa = u / (K alpha + u) it is kappa at all v if z = x; otherwise it is 1, but
1 / kappa at v = x. The published closed forms subtract large sums from each other and lose their digits near
t = 0 and t = 1. Here each term is computed by itself as

    D(rho, rho (1 + e)) = rho (e - log(1 + e)),     rho e = r^_v - rho = y_v,
    y_v = A p_v + kappa A (1 - p_z) if z = x,  A (p_v - p_z) otherwise,     A = K alpha / n_z,

where nothing cancels but p_v against p_z, at which the term is zero. What depends on the cell alone is in
float64, tables over the vocabulary are in the precision of the logits. With g_v = 1 - r_v / r^_v the
derivatives are dF/dp_v = A g_v and dF/dp_z = -A sum over v != z of (r^_v - r_v), and go through the softmax.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import require
from xlm_udlm.vocabulary_udlm import CellVocabulary

LEAST_NOISE = 2.0**-90
"""Noise levels below this are computed as this one: 1 / u must be a float32, and F has long reached its limit
at u = 0."""
_LARGEST_RATIO = 1e37
"""Largest y / rho in float32; beyond it, rho log(1 + y / rho) is nothing beside y."""


class UniformNELBO:
    """weight * F of cells, as a :class:`xlm.modules.CellLoss`, and what metrics need of them.

    Args:
        vocabulary: Which tokens are possible.
        own: z of each cell.
        target: x of each cell.
        one_minus_alpha: u of each cell.
        weight: What F / K is multiplied by.
        may_end: True at cells where EOS and PAD are possible.
        own_bonus: For logits of a denoiser, by how much that of z exceeds the one of the leave-one-out
            prediction, see :func:`xlm_udlm.posterior_udlm.own_token_bonus`.
    """

    def __init__(
        self,
        vocabulary: CellVocabulary,
        *,
        own: Int[Tensor, " cells"],
        target: Int[Tensor, " cells"],
        one_minus_alpha: Float64[Tensor, " cells"],
        weight: Float64[Tensor, " cells"],
        may_end: Bool[Tensor, " cells"],
        own_bonus: Float64[Tensor, " cells"] | None = None,
    ) -> None:
        self._vocabulary, self._own_bonus = vocabulary, own_bonus
        self._own, self._target, self._may_end = own, target, may_end
        self._noise = one_minus_alpha.clamp(min=LEAST_NOISE)
        self._num_possible = vocabulary.num_possible(may_end)
        self._weight = weight / self._num_possible
        self.log_prob = torch.zeros_like(weight)
        """log p of the clean token of each cell, in nats."""
        self.best = torch.zeros_like(own)
        """Most probable token of each cell, the first among equals."""

    def __call__(
        self, logits: Float[Tensor, "piece vocab"], cells: slice, /, *, differentiates: bool
    ) -> Float64[Tensor, " piece"]:
        """weight * F / K of some cells; see :class:`xlm.modules.CellLoss`.

        Raises:
            ValueError: If the logits are those of another vocabulary.
        """
        size = self._vocabulary.vocab_size
        require(logits.shape[1] == size, "vocab_size", size, f"that of the logits, {logits.shape[1]}")
        own, target, u, k = (
            values[cells].unsqueeze(1)
            for values in (self._own, self._target, self._noise, self._num_possible)
        )
        may_end, weight = self._may_end[cells], self._weight[cells]
        self._vocabulary.restrict_(logits, may_end)
        if self._own_bonus is not None:
            logits.scatter_add_(1, own, -self._own_bonus[cells].unsqueeze(1).to(logits.dtype))
        self.best[cells] = logits.argmax(1)
        logits -= logits.amax(1, keepdim=True)
        score = logits.gather(1, target)
        p = logits.exp_()
        total = p.sum(1, keepdim=True)
        p /= total
        self.log_prob[cells] = (score - total.log()).squeeze(1)
        p_own, p_target = (p.gather(1, token).double() for token in (own, target))

        same = own == target
        scale = k * (1 - u)  # K alpha
        kappa = u / (scale + u)
        n_own = scale * p_own + u
        slope = scale / n_own  # A
        rho = kappa.where(same, 1.0)
        offset = slope * (kappa * (1 - p_own)).where(same, -p_own)
        y = p * slope.to(p.dtype)
        y += offset.to(p.dtype)
        self._vocabulary.fill_impossible_(y, may_end, 0.0)
        # z has no term, and if x is another token its r_v is not rho.
        y.scatter_(1, own, 0.0)
        y.scatter_(1, target, 0.0)
        model_ratio = p * slope.to(p.dtype)  # r^
        model_ratio += (u / n_own).to(p.dtype)
        log_ratio = (y * (1 / rho).to(p.dtype)).clamp_(max=_LARGEST_RATIO).log1p_()
        # Where r^ is next to nothing, y / rho has been rounded to -1; there z is not x, and rho is 1.
        log_ratio = torch.where(y < -0.5, model_ratio.log(), log_ratio)
        terms = log_ratio.mul_(rho.to(p.dtype)).neg_().add_(y)
        value = terms.sum(1, keepdim=True, dtype=torch.float64)

        # The term of v = x where z is another token: rho = 1 / kappa, and y / rho = e lies in (-1, 0].
        ahead = scale * p_target + u
        excess = -slope * (kappa * (1 - p_target) + p_own)
        of_excess = torch.where(excess > -0.5, excess.log1p(), kappa.log() + ahead.log() - n_own.log())
        value += ((excess - of_excess) / kappa).masked_fill(same, 0.0)
        if differentiates:
            g = y.div_(model_ratio)  # zero at z and x, whose derivatives may exceed a float32
            of_own = -slope * (k / n_own - k - torch.where(same, kappa * (k - 1) - k + 1, scale / u))
            of_target = (slope * (1 - n_own / (kappa * ahead))).masked_fill(same, 0.0)
            mean = torch.bmm(p.unsqueeze(1), g.unsqueeze(2)).squeeze(2).double()  # no table of products
            mean = slope * mean + p_target * of_target + p_own * of_own
            factor = weight.unsqueeze(1)
            g.mul_((factor * slope).to(p.dtype)).sub_((factor * mean).to(p.dtype))
            p.mul_(g)  # in the place of the logits
            p.scatter_(1, target, (factor * p_target * (of_target - mean)).to(p.dtype))
            p.scatter_(1, own, (factor * p_own * (of_own - mean)).to(p.dtype))
        return value.squeeze(1) * weight
