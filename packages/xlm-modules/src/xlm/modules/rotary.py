"""Rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864), half-split layout.

Coordinate i of the first half is rotated together with coordinate i of the second half, as in GPT-NeoX, Llama
and litgpt. The interleaved layout (pairs 2i, 2i+1) is a permutation of the coordinates: weights trained with
one do not fit the other. Sines and cosines are computed from the positions on each forward pass, not looked
up, so there is neither a longest length nor a buffer to move or to save.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BASE = 10000.0


def rotary_angles(
    position_ids: Int[Tensor, "batch length"], rotary_dim: int, *, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch length half"], Float[Tensor, "batch length half"]]:
    """Cosine and sine of the angles m * theta_i with theta_i = 10000^(-2i / rotary_dim) at position m.

    Args:
        position_ids: Position of each token, shape (batch, length).
        rotary_dim: Number of coordinates to rotate, even; half of it is the number of angles.
        dtype: Dtype of the network. The angles have it too, but never less than float32, in which positions
            above 256 would already coincide.

    Returns:
        Cosines and sines, each of shape (batch, length, rotary_dim / 2).
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, rotary_dim, 2, device=position_ids.device, dtype=dtype) / rotary_dim
    angles = position_ids.unsqueeze(-1).to(dtype) * _BASE**-exponents
    return angles.cos(), angles.sin()


def apply_rotary(
    x: Float[Tensor, "*parts batch heads length head_dim"],
    cos: Float[Tensor, "#batch length half"],
    sin: Float[Tensor, "#batch length half"],
) -> Float[Tensor, "*parts batch heads length head_dim"]:
    """Rotate the first 2 * half coordinates of each head by the angles of its position; pass on the others.

    (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 being the halves of the rotated part, so
    that the product of a rotated query and a rotated key depends on the difference of their positions only.

    Args:
        x: Queries or keys, or both side by side, shape (..., batch, heads, length, head_dim).
        cos: Cosines from :func:`rotary_angles`, shape (batch or 1, length, half), 2 * half <= head_dim.
        sin: Sines, same shape.

    Returns:
        Rotated queries or keys, same shape and dtype as x.
    """
    half = cos.shape[-1]
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    wide_cos = torch.cat((cos, cos), dim=-1).unsqueeze(1)
    signed_sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1)
    rotated = torch.addcmul(rotated * wide_cos, rotated.roll(half, dims=-1), signed_sin).to(x.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] > 0 else rotated


def checked_rotary_dim(rotary_dim: int | None, head_dim: int) -> int:
    """Number of coordinates of a head to rotate: ``rotary_dim``, or all of them by default."""
    checked = head_dim if rotary_dim is None else rotary_dim
    if checked % 2 != 0 or not 0 < checked <= head_dim:
        raise ValueError(f"rotary_dim must be even and in 2..{head_dim} (d_model / num_heads), got {checked}")
    return checked
