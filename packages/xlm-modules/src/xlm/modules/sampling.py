"""Drawing tokens from logits. Pure functions: all randomness comes in as uniform numbers.

Rows are drawn by inverting the cumulative distribution in float64 with one uniform per row
(:func:`xlm.modules.uniform`). Compared with Gumbel noise on every logit this needs one number instead of one
per token of the vocabulary, and does not truncate the tail as float32 noise does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from xlm.modules.options import require

_CANDIDATES = 2048
"""Largest logits in which top-p looks first for its tokens, without sorting the vocabulary."""
_BLOCK = 128
"""Columns whose probabilities are added up together."""
_LOGITS_AT_ONCE = 2**18
"""Logits of the rows that are drawn together: 1 MiB in float32, which a processor's cache holds."""
_NOTHING_TO_DRAW = "a row of logits has no token to draw: all are -inf, or one is NaN or +inf"


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Widen half precision: it is for the network, not for log-probabilities and their sums.

    Args:
        values: Any shape.

    Returns:
        The same values in float32, or as they are in float32 or float64.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def suppress_tokens(
    logits: Float[Tensor, "*rows vocab"], token_ids: Sequence[int]
) -> Float[Tensor, "*rows vocab"]:
    """Give some tokens the probability 0.

    The ids are not copied to the device of the logits, which would wait for all that it still has to do.

    Args:
        logits: Unnormalised log-probabilities, shape (..., vocab).
        token_ids: What to suppress; may be empty.

    Returns:
        Logits of the same shape, -inf at these tokens, in float32 at least: sums over the vocabulary need it.

    Raises:
        IndexError: If an id is outside the vocabulary.
    """
    wide = at_least_float32(logits)
    if not token_ids:
        return wide
    # A copy whose columns are filled takes a third of the time of masked_fill.
    possible = wide.clone() if wide is logits else wide
    for token in token_ids:
        possible.select(-1, token).fill_(-math.inf)
    return possible


def apply_temperature(
    logits: Float[Tensor, "*rows vocab"], temperature: float
) -> Float[Tensor, "*rows vocab"]:
    """Divide the logits by the temperature: below 1 sharpens the distribution, above 1 flattens it.

    Args:
        logits: Unnormalised log-probabilities, shape (..., vocab).
        temperature: Greater than 0; the limit 0 (greedy) is for :class:`TokenSampling`.

    Returns:
        Logits of the same shape and dtype.

    Raises:
        ValueError: If the temperature is not greater than 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    return logits / temperature


def filter_top_k(logits: Float[Tensor, "*rows vocab"], top_k: int) -> Float[Tensor, "*rows vocab"]:
    """Keep the ``top_k`` largest logits of each row and set the others to -inf.

    Exactly ``top_k`` tokens stay: among equal logits those with the lowest ids.

    Args:
        logits: Unnormalised log-probabilities, shape (..., vocab).
        top_k: Tokens to keep, at least 1; more than the vocabulary keeps all.

    Returns:
        Logits of the same shape and dtype.

    Raises:
        ValueError: If top_k is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_k >= logits.shape[-1]:
        return logits
    number = torch.full_like(logits[..., :1], top_k, dtype=torch.long)
    return _keep_best(logits, logits.topk(top_k).values, number)


def filter_top_p(logits: Float[Tensor, "*rows vocab"], top_p: float) -> Float[Tensor, "*rows vocab"]:
    """Keep the smallest set of most probable tokens with mass of at least ``top_p``, set the others to -inf.

    This is nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751, eq. 2): the token that crosses
    ``top_p`` stays, so at least one token does. Among equal logits those with the lowest ids come first.

    Args:
        logits: Unnormalised log-probabilities, shape (..., vocab).
        top_p: Mass to keep, in (0, 1]; 1 keeps every token.

    Returns:
        Logits of the same shape and dtype.

    Raises:
        ValueError: If top_p is outside (0, 1].
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_p == 1:
        return logits
    wide = at_least_float32(logits)
    highest = wide.amax(-1, keepdim=True)
    total = (wide - highest).exp_().sum(-1, keepdim=True, dtype=torch.float64)
    best = wide.topk(min(_CANDIDATES, wide.shape[-1])).values
    mass = (best - highest).exp().cumsum(-1, dtype=torch.float64) / total
    if best.shape[-1] < wide.shape[-1] and not bool((mass[..., -1] >= top_p).all()):
        best = wide.sort(dim=-1, descending=True).values
        mass = (best - highest).exp().cumsum(-1, dtype=torch.float64) / total
    # The last candidate stays where rounding keeps the mass of all tokens below top_p.
    number = 1 + (mass[..., :-1] < top_p).sum(-1, keepdim=True)
    return _keep_best(logits, best.to(logits.dtype), number)


def _keep_best(logits: Tensor, best: Tensor, number: Tensor) -> Tensor:
    """Keep exactly a number (..., 1) of the largest logits of each row.

    ``best`` (..., candidates) are their values in descending order; of equal ones the lowest ids are kept.

    torch.topk breaks ties differently from device to device: its values are used, its indices are not.
    """
    smallest = best.gather(-1, number - 1)
    keep = logits >= smallest
    if bool((keep.sum(-1, keepdim=True) > number).any()):  # seldom: logits equal to the smallest that stays
        tied = logits == smallest
        num_tied = number - (logits > smallest).sum(-1, keepdim=True)
        keep &= ~tied | (tied.cumsum(-1) <= num_tied)
    return logits.masked_fill(~keep, -torch.inf)


def categorical(
    logits: Float[Tensor, "rows vocab"], uniforms: Float64[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Draw one token per row from softmax(logits), by inverting the cumulative distribution.

    The token is the first one whose cumulative probability exceeds the row's uniform number. A token with
    logit -inf is never drawn. Weights are exponentials in the logits' precision, float32 at least, and sums
    are in float64, a few rows at a time.

    Args:
        logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).
        uniforms: One number in [0, 1) per row, shape (rows,).

    Returns:
        Token ids, shape (rows,).

    Raises:
        ValueError: If a row has no token to draw: all logits are -inf, or one is NaN or +inf.
    """
    rows = max(_LOGITS_AT_ONCE // max(logits.shape[-1], 1), 1)
    drawn, totals = zip(*map(_draw, logits.split(rows), uniforms.split(rows)), strict=True)
    if not bool((torch.cat(totals) > 0).all()):
        raise ValueError(_NOTHING_TO_DRAW)
    return torch.cat(drawn)


def _draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token of each row and the sum of its weights, (rows,) each.

    First a block of columns is drawn, then one of its columns, so that only the sums of blocks and one block
    are added up column by column.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = (wide - wide.amax(-1, keepdim=True)).exp_()
    if weights.shape[-1] <= 2 * _BLOCK:
        columns = weights.to(torch.float64)
        cumulative = columns.cumsum(-1)
        total = cumulative.amax(-1)
        return _first_above(cumulative, columns, uniforms * total)[0], total
    num_blocks = -(-weights.shape[-1] // _BLOCK)
    blocks = F.pad(weights, (0, num_blocks * _BLOCK - weights.shape[-1])).unflatten(-1, (num_blocks, _BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64)
    cumulative = sums.cumsum(-1)
    total = cumulative.amax(-1)
    block, place = _first_above(cumulative, sums, uniforms * total)
    columns = blocks.gather(1, block[:, None, None].expand(-1, 1, _BLOCK)).squeeze(1).to(torch.float64)
    column, _ = _first_above(columns.cumsum(-1), columns, place)
    return block * _BLOCK + column, total


def _first_above(cumulative: Tensor, weights: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The column in which the row's place lies, and how far into it, (rows,) each.

    That is the first column with weight whose cumulative weight exceeds the place; the last one with weight
    if none does.

    By rounding, a sum in parallel may rise at a column without weight, and a sum of sums may differ from the
    sum of all.
    """
    has_weight = weights > 0
    exceeds = has_weight & (cumulative > place.unsqueeze(-1))
    last = weights.shape[-1] - 1 - has_weight.flip(-1).byte().argmax(-1)
    first = torch.where(exceeds.any(-1), exceeds.byte().argmax(-1), last).unsqueeze(-1)
    before = (cumulative.gather(-1, first) - weights.gather(-1, first)).squeeze(-1)
    return first.squeeze(-1), place - before


def entropy(log_probs: Float64[Tensor, "rows choices"]) -> Float64[Tensor, " rows"]:
    """Entropy in nats of distributions given by their log-probabilities, -inf where nothing is drawn."""
    return torch.special.entr(log_probs.exp()).sum(-1)


@dataclass(frozen=True)
class TokenSampling:
    """How a token is drawn from its logits: temperature, top-k and top-p, applied in this order.

    Args:
        temperature: Divides the logits, at least 0; 0 takes the most probable token (the lowest id among
            equals).
        top_k: Tokens to choose from, at least 1; None for all.
        top_p: Mass of the tokens to choose from, in (0, 1]; None for all.
        prefix: What the options are called beyond these names, for messages: such as "slot_".

    Raises:
        ValueError: If an option is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    prefix: str = field(default="", kw_only=True, compare=False)

    def __post_init__(self) -> None:
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        in_range = 0 <= temperature < math.inf
        require(in_range, f"{self.prefix}temperature", temperature, "at least 0 and finite")
        require(top_k is None or top_k >= 1, f"{self.prefix}top_k", top_k, "None or at least 1")
        require(top_p is None or 0 < top_p <= 1, f"{self.prefix}top_p", top_p, "None or in (0, 1]")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken, and nothing is drawn."""
        return self.temperature == 0

    @property
    def is_filtered(self) -> bool:
        """Whether top-k or top-p leaves tokens out."""
        return self.top_k is not None or self.top_p is not None

    def draw(
        self, logits: Float[Tensor, "rows vocab"], uniforms: Float64[Tensor, " rows"]
    ) -> Int[Tensor, " rows"]:
        """Draw one token per row.

        Args:
            logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).
            uniforms: One number in [0, 1) per row, shape (rows,).

        Returns:
            Token ids, shape (rows,).

        Raises:
            ValueError: If a row has no token to draw.
        """
        return logits.argmax(-1) if self.is_greedy else categorical(self._filter(logits), uniforms)

    def log_probs(self, logits: Float[Tensor, "rows vocab"]) -> Float64[Tensor, "rows vocab"]:
        """Log-probabilities with which :meth:`draw` draws the tokens; differentiable unless greedy.

        Args:
            logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).

        Returns:
            Nats, -inf at tokens that the filters leave out, shape (rows, vocab). Greedy: 0 at the token that
            is taken, -inf elsewhere.

        Raises:
            ValueError: If a row has no token to draw.
        """
        if self.is_greedy:
            nothing = torch.full_like(logits, -math.inf, dtype=torch.float64)
            return nothing.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        log_probs = self._filter(logits).to(torch.float64).log_softmax(-1)
        if bool(log_probs.isnan().any()):
            raise ValueError(_NOTHING_TO_DRAW)
        return log_probs

    def score(
        self, logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]
    ) -> Float64[Tensor, " rows"]:
        """Entries of :meth:`log_probs` at one token per row, a few rows at a time.

        Args:
            logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).
            tokens: A token id per row, shape (rows,).

        Returns:
            Nats, shape (rows,).

        Raises:
            ValueError: If a row has no token to draw.
        """
        pieces = self._pieces(logits, tokens)
        return torch.cat([log_probs.gather(1, token).squeeze(1) for log_probs, token in pieces])

    def score_with_entropy(
        self, logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]
    ) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
        """:meth:`score`, and the :func:`entropy` of the distribution of each row, shape (rows,)."""
        found = [
            (log_probs.gather(1, token).squeeze(1), entropy(log_probs))
            for log_probs, token in self._pieces(logits, tokens)
        ]
        scores, entropies = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(entropies)

    def _pieces(self, logits: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-probabilities (some, vocab) and tokens (some, 1) of a few rows at a time."""
        rows = max(_LOGITS_AT_ONCE // max(logits.shape[-1], 1), 1)
        for some, token in zip(logits.split(rows), tokens.unsqueeze(1).split(rows), strict=True):
            yield self.log_probs(some), token

    def _filter(self, logits: Tensor) -> Tensor:
        """Logits of what is drawn, -inf at tokens that are left out."""
        if self.top_k is not None:
            logits = filter_top_k(logits, self.top_k)
        if self.temperature != 1:
            # In float64: tokens that differ in the logits must not become equal for top-p by the division.
            logits = apply_temperature(logits.to(torch.float64), self.temperature)
        if self.top_p is not None:
            logits = filter_top_p(logits, self.top_p)
        return logits
