"""Cross entropy of the denoiser at one cell, and its gradient by the logits.

With m the network's leave-one-out prediction, z the token of the cell in x_t, u = 1 - alpha and K possible
tokens, the denoiser is d(v) ~ m(v) (alpha 1[v = z] + u / K), see :mod:`xlm_udlm.posterior_udlm`, and

    CE = -log d(x).

Its expectation is least at the exact d, and then m is the exact leave-one-out prediction: the optimum is that
of the bound, with other weights of the noise levels and of the tokens. The integrand of the bound vanishes
like alpha^2 where nearly everything is noise; the cross entropy does not.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules import require
from xlm_udlm.vocabulary_udlm import CellVocabulary


class DenoiserCrossEntropy:
    """CE of cells, as a :class:`xlm.modules.CellLoss`, and what metrics need of them.

    Args:
        vocabulary: Which tokens are possible.
        own: z of each cell.
        target: x of each cell.
        may_end: True at cells where EOS and PAD are possible.
        own_bonus: By how much the denoiser's logit of z exceeds that of the leave-one-out prediction, see
            :func:`xlm_udlm.posterior_udlm.own_token_bonus`.
        is_denoiser: Whether the logits are those of the denoiser already.
    """

    def __init__(
        self,
        vocabulary: CellVocabulary,
        *,
        own: Int[Tensor, " cells"],
        target: Int[Tensor, " cells"],
        may_end: Bool[Tensor, " cells"],
        own_bonus: Float64[Tensor, " cells"],
        is_denoiser: bool,
    ) -> None:
        self._vocabulary, self._own_bonus, self._is_denoiser = vocabulary, own_bonus, is_denoiser
        self._own, self._target, self._may_end = own, target, may_end
        self.log_prob = torch.zeros_like(own_bonus)
        """log m of the clean token of each cell, in nats."""
        self.best = torch.zeros_like(own)
        """Most probable token of each cell given the others, the first among equals."""

    def __call__(
        self, logits: Float[Tensor, "piece vocab"], cells: slice, /, *, differentiates: bool
    ) -> Float64[Tensor, " piece"]:
        """CE of some cells; see :class:`xlm.modules.CellLoss`.

        Raises:
            ValueError: If the logits are those of another vocabulary.
        """
        size = self._vocabulary.vocab_size
        require(logits.shape[1] == size, "vocab_size", size, f"that of the logits, {logits.shape[1]}")
        own, target = self._own[cells].unsqueeze(1), self._target[cells].unsqueeze(1)
        bonus = self._own_bonus[cells].unsqueeze(1).to(logits.dtype)
        self._vocabulary.restrict_(logits, self._may_end[cells])
        if self._is_denoiser:
            logits.scatter_add_(1, own, -bonus)
        self.best[cells] = logits.argmax(1)
        score = logits.gather(1, target) - logits.logsumexp(1, keepdim=True)
        self.log_prob[cells] = score.squeeze(1).double()
        logits.scatter_add_(1, own, bonus)
        log_total = logits.logsumexp(1, keepdim=True)
        value = (log_total - logits.gather(1, target)).squeeze(1).double()
        if differentiates:
            logits.sub_(log_total).exp_()
            logits.scatter_add_(1, target, torch.full_like(score, -1.0))
        return value
