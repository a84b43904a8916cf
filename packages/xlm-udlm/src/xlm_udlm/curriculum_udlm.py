"""The Gaussian curriculum: uniform-state noise as the largest entry of a Gaussian (Duo, arXiv:2506.10892).

With e_x the unit vector of the clean token among the K possible ones, a = sigmoid(-gamma)^(1/2) and

    w = a e_x + (1 - a^2)^(1/2) n,      n ~ N(0, 1) in each of the K coordinates,

argmax w is x noised by the uniform-state process at

    alpha = K / (K - 1) (E_{y ~ N(mu, 1)} Phi(y)^(K - 1) - 1 / K),   mu = a / (1 - a^2)^(1/2) = e^(-gamma / 2)

(section 4 there). In the first part of a training the network does not read x_t = argmax w but the average of
the embeddings weighted by softmax(w / temperature), a softened x_t. The loss is that of x_t, with the weight
of gamma's distribution: -alpha'(gamma) / alpha times the width of its range. It is biased; at temperature 0
it is the bound restricted to the noise levels of that range.

Of the K - 1 equal coordinates the largest are drawn as order statistics, so that nothing of size K is made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.modules import require, uniform
from xlm_udlm.vocabulary_udlm import CellVocabulary

_STREAM_SIGNAL = 3
_STREAM_LARGEST = 4
_STREAM_TOKENS = 5
_NODES = 320
_REACH = 10.0
"""The integrals over N(mu, 1) go so many standard deviations to either side."""


@dataclass(frozen=True)
class Levels:
    """The noise of some rows, (rows,) each."""

    mu: Float64[Tensor, " rows"]
    one_minus_alpha: Float64[Tensor, " rows"]
    weight: Float64[Tensor, " rows"]
    """-alpha'(gamma) / alpha times the width of gamma's range."""


@dataclass(frozen=True)
class Softened:
    """Tokens of each column, the clean one first, and their weights."""

    ids: Int[Tensor, "rows length tokens"]
    largest: Int[Tensor, "rows length"]
    """x_t, the token of the largest weight."""
    weights: Float64[Tensor, "rows length tokens"] | None
    """None at temperature 0."""


@dataclass(frozen=True)
class GaussianCurriculum:
    """Softened inputs for the first rows of the training stream.

    Args:
        num_rows: Rows of the training stream with the curriculum: optimizer steps times rows of a step. Rows
            without a place in a stream have it too.
        temperature: Of the softmax, at least 0; with 0 the network reads x_t.
        lowest: Lowest gamma, of the least noise.
        highest: Highest gamma.
        candidates: The most tokens beside the clean one that have a weight; those with the largest entries
            are taken. With K - 1 of them no weight is left out; at the published temperature those beyond the
            first few are below the precision of float32.

    Raises:
        ValueError: If an option is outside its range.
    """

    num_rows: int
    temperature: float = 1e-3
    lowest: float = -3.5
    highest: float = -1.75
    candidates: int = 16

    def __post_init__(self) -> None:
        require(self.num_rows >= 1, "num_rows", self.num_rows, "at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        require(self.lowest < self.highest, "lowest and highest", (self.lowest, self.highest), "rising")
        require(self.candidates >= 1, "candidates", self.candidates, "at least 1")

    def levels(self, s: Float64[Tensor, " rows"], num_possible: Int[Tensor, " rows"]) -> Levels:
        """The noise at gamma = highest - (highest - lowest) (1 - s), for s in (0, 1).

        Args:
            s: Uniform numbers.
            num_possible: K, the same in all cells of a row, at least 2.
        """
        width = self.highest - self.lowest
        mu = torch.exp(-(self.lowest + width * s) / 2)
        points, weights = _gauss_legendre()
        y = mu.unsqueeze(1) + _REACH * points
        mass = weights * _REACH * torch.exp(-((_REACH * points) ** 2) / 2) / (2 * torch.pi) ** 0.5
        k = num_possible.double().unsqueeze(1)
        log_power = (k - 1) * torch.special.log_ndtr(y)
        # K (1 - E) / (K - 1), without the difference where it is small.
        noised = (k / (k - 1) * -torch.expm1(log_power) * mass).sum(1).clamp(max=1.0)
        slope = (k / (k - 1) * log_power.exp() * mass * _REACH * points).sum(1)  # d alpha / d mu
        alpha = 1 - noised
        return Levels(mu, noised, (width * mu / 2 * slope / alpha).masked_fill(alpha <= 0, 0.0))

    def draw(
        self,
        vocabulary: CellVocabulary,
        seeds: Int[Tensor, " rows"],
        target_ids: Int[Tensor, "rows length"],
        may_end: Bool[Tensor, "rows length"],
        mu: Float64[Tensor, " rows"],
    ) -> "Softened":
        """Soften the tokens of all columns.

        Args:
            vocabulary: Which tokens are possible.
            seeds: The source of all draws.
            target_ids: Clean tokens; the result has no meaning where they are impossible.
            may_end: True at cells where EOS and PAD are possible.
            mu: Of each row.
        """
        others = vocabulary.num_possible(may_end) - 1
        taken = [vocabulary.index_of(target_ids)]

        def uniforms(rank: int, stream: int) -> Tensor:
            return uniform(seeds, target_ids.shape[1], step=rank, stream=stream)

        entries = [mu.unsqueeze(1) + torch.special.ndtri(uniforms(0, _STREAM_SIGNAL))]
        log_quantile = torch.zeros_like(entries[0])
        for rank in range(min(self.candidates, int(others.max()))):
            # Of the coordinates that are left, the largest and whose it is.
            left = (others - rank).clamp(min=1)
            log_quantile = log_quantile + uniforms(rank, _STREAM_LARGEST).log() / left
            entry = -torch.special.ndtri(-torch.expm1(log_quantile))
            entries.append(entry.masked_fill(others <= rank, -torch.inf))
            index = (uniforms(rank, _STREAM_TOKENS) * left).long().minimum(left - 1)
            for other in torch.stack(taken, dim=-1).sort(dim=-1).values.unbind(-1):
                index = index + (index >= other)
            taken.append(index)
        w = torch.stack(entries, dim=-1) * (1 + mu**2).rsqrt()[:, None, None]
        ids = vocabulary.tokens_at(torch.stack(taken, dim=-1), may_end.unsqueeze(-1))
        weights = (w / self.temperature).softmax(-1) if self.temperature > 0 else None
        return Softened(ids, ids.gather(2, w.argmax(-1, keepdim=True)).squeeze(2), weights)


def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Points and weights of an integral over (-1, 1), from the eigenvalues of the Jacobi matrix."""
    order = torch.arange(1, _NODES, dtype=torch.float64)
    beta = order / (4 * order**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return points, 2 * vectors[0] ** 2
