"""Rotary positions against four other implementations, complex numbers and their invariants."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm.modules import apply_rotary, rotary_angles

LoadVectors = Callable[[str], dict[str, Tensor]]


def rotate(x: Tensor, positions: Tensor, *, rotary_dim: int | None = None) -> Tensor:
    cos, sin = rotary_angles(positions, rotary_dim or x.shape[-1], dtype=x.dtype)
    return apply_rotary(x, cos, sin)


def random_heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_half_split_equals_the_references(load_vectors: LoadVectors):
    vectors = load_vectors("rope")
    q, k, positions = vectors["in.q"].double(), vectors["in.k"].double(), vectors["in.positions"]
    for name, x in (("xlm.half_split.q", q), ("xlm.half_split.k", k), ("litgpt.half_split.q", q)):
        torch.testing.assert_close(rotate(x, positions), vectors[f"{name}.f64"], rtol=1e-6, atol=1e-6)
    consecutive = torch.arange(5).unsqueeze(0)
    expected = vectors["flexmdm_official.half_split_arange.q.f64"]
    torch.testing.assert_close(rotate(q, consecutive), expected, rtol=1e-6, atol=1e-6)


def test_interleaved_layout_is_a_permutation_of_the_coordinates(load_vectors: LoadVectors):
    vectors = load_vectors("rope")
    permutation = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    for name in ("q", "k"):
        ours = rotate(vectors[f"in.{name}"][..., permutation], vectors["in.positions"])
        theirs = vectors[f"torchtitan.interleaved.{name}.f32"][..., permutation]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
def test_rotation_equals_multiplication_of_complex_numbers(rotary_dim: int):
    """(x1 + i x2) exp(i m theta) with theta_i = 10000^(-2i / rotary_dim); the other coordinates pass."""
    x, positions = random_heads(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [5, 5, 1000, 123_456]])
    half = rotary_dim // 2
    theta = 10000.0 ** (-2 * np.arange(half) / rotary_dim)
    turns = np.exp(1j * positions.numpy()[:, None, :, None] * theta)
    array = x.numpy()
    rotated = (array[..., :half] + 1j * array[..., half:rotary_dim]) * turns
    expected = np.concatenate((rotated.real, rotated.imag, array[..., rotary_dim:]), axis=-1)
    ours = rotate(x, positions, rotary_dim=rotary_dim).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_scores_depend_on_differences_of_positions_only():
    query, key = random_heads(1, 2, 6, 8), random_heads(1, 2, 6, 8, seed=1)
    positions = torch.tensor([[0, 3, 4, 9, 20, 21]])

    def scores(offset: int) -> Tensor:
        return rotate(query, positions + offset) @ rotate(key, positions + offset).mT

    torch.testing.assert_close(scores(1000), scores(0), rtol=0, atol=1e-10)
    assert not torch.allclose(rotate(query, positions + 1000), rotate(query, positions))


def test_norms_are_preserved_and_position_zero_is_the_identity():
    x = random_heads(2, 3, 5, 8)
    positions = torch.randint(0, 10_000, (2, 5), generator=torch.Generator().manual_seed(0))
    squares, rotated_squares = (y.square().sum(-1) for y in (x, rotate(x, positions)))
    torch.testing.assert_close(rotated_squares, squares, rtol=1e-12, atol=0)
    assert torch.equal(rotate(x, torch.zeros_like(positions)), x)


@pytest.mark.parametrize(
    ("network", "angles"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_angles_have_at_least_float32_and_the_result_the_dtype_of_the_input(
    network: torch.dtype, angles: torch.dtype
):
    positions = torch.tensor([[256, 257]])
    cos, sin = rotary_angles(positions, 4, dtype=network)
    assert cos.dtype == sin.dtype == angles
    assert abs(float(sin[0, 1, 0]) - np.sin(257)) < 1e-5  # bfloat16 has no 257
    assert apply_rotary(torch.ones(1, 1, 2, 4, dtype=network), cos, sin).dtype == network
