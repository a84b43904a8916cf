"""Drawing tokens from logits. Pure functions: all randomness comes in as uniform numbers.

Rows are drawn by inverting the cumulative distribution in float64 with one uniform per row
(:func:`xlm.modules.uniform`). Compared with Gumbel noise on every logit this needs one number instead of one
per token of the vocabulary, and does not truncate the tail as float32 noise does.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


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
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not token_ids:
        return logits
    suppressed = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    for token in token_ids:
        suppressed.select(0, token).fill_(True)
    return logits.masked_fill(suppressed, -math.inf)


def apply_temperature(
    logits: Float[Tensor, "*rows vocab"], temperature: float
) -> Float[Tensor, "*rows vocab"]:
    """Divide the logits by the temperature: below 1 sharpens the distribution, above 1 flattens it.

    Args:
        logits: Unnormalised log-probabilities, shape (..., vocab).
        temperature: Greater than 0; the limit 0 (greedy) is for :func:`sample_tokens`.

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
    # torch.topk breaks ties differently from device to device: its values are used, its indices are not.
    smallest_kept = logits.topk(top_k).values[..., -1:]
    above = logits > smallest_kept
    tied = logits == smallest_kept
    keep = above | (tied & (tied.cumsum(-1) <= top_k - above.sum(-1, keepdim=True)))
    return logits.masked_fill(~keep, -torch.inf)


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
    ordered, order = logits.to(torch.float64).sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1).cumsum(-1)
    drop_ordered = torch.zeros_like(mass, dtype=torch.bool)
    drop_ordered[..., 1:] = mass[..., :-1] >= top_p
    drop = torch.zeros_like(drop_ordered).scatter(-1, order, drop_ordered)
    return logits.masked_fill(drop, -torch.inf)


def categorical(
    logits: Float[Tensor, "rows vocab"], uniforms: Float64[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Draw one token per row from softmax(logits), by inverting the cumulative distribution in float64.

    The token is the first one whose cumulative probability exceeds the row's uniform number. A token with
    logit -inf is never drawn. For very many rows call it in pieces: it needs some rows * vocab float64.

    Args:
        logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).
        uniforms: One number in [0, 1) per row, shape (rows,).

    Returns:
        Token ids, shape (rows,).

    Raises:
        ValueError: If a row has no token to draw: all logits are -inf, or one is NaN or +inf.
    """
    wide = logits.to(torch.float64)
    weights = (wide - wide.amax(-1, keepdim=True)).exp()
    # A parallel cumsum may rise by rounding at a column of weight 0, hence the explicit exclusion.
    cumulative = torch.where(weights > 0, weights.cumsum(-1), 0.0)
    total = cumulative.amax(-1)
    if not bool((total > 0).all()):
        raise ValueError("a row of logits has no token to draw: all are -inf, or one is NaN or +inf")
    # uniform < 1 implies uniform * total < total after rounding too, so some column exceeds it.
    exceeds = cumulative > (uniforms * total).unsqueeze(-1)
    return exceeds.byte().argmax(-1)


def sample_tokens(
    logits: Float[Tensor, "rows vocab"],
    uniforms: Float64[Tensor, " rows"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Tensor, " rows"]:
    """Draw one token per row after temperature, top-k and top-p, applied in this order.

    Args:
        logits: Unnormalised log-probabilities, any float dtype, shape (rows, vocab).
        uniforms: One number in [0, 1) per row, shape (rows,).
        temperature: At least 0; 0 takes the most probable token (the lowest id among equals).
        top_k: Tokens to choose from, at least 1; None for all.
        top_p: Mass of the tokens to choose from, in (0, 1]; None for all.

    Returns:
        Token ids, shape (rows,).

    Raises:
        ValueError: If an option is outside its range, or a row has no token to draw.
    """
    greedy = temperature == 0
    # In float64 from the start: tokens that differ in the logits must not become equal by the division.
    filtered = logits.to(torch.float64)
    if not greedy:
        filtered = apply_temperature(filtered, temperature)
    if top_k is not None:
        filtered = filter_top_k(filtered, top_k)
    if top_p is not None:
        filtered = filter_top_p(filtered, top_p)
    return filtered.argmax(-1) if greedy else categorical(filtered, uniforms)
