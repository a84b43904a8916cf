"""Poisson numbers, and what happens to those that do not fit."""

import itertools
import math

import pytest
import torch

from xlm_flexmdm import fit_to_budget, poisson


@pytest.mark.parametrize("mean", [0.0, 1e-9, 0.3, 2.0, 30.0, 900.0])
def test_poisson_numbers_invert_the_distribution(mean: float) -> None:
    number = 500
    uniforms = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    limit = int(mean + 10 * math.sqrt(mean) + 20)
    found = poisson(torch.full_like(uniforms, mean), uniforms, torch.full((number,), limit))
    k = torch.arange(limit + 1, dtype=torch.float64)
    mass = (torch.xlogy(k, torch.tensor(mean, dtype=torch.float64)) - mean - torch.lgamma(k + 1)).exp()
    expected = torch.searchsorted(mass.cumsum(0), uniforms, right=True)
    assert (found != expected).sum() <= (1 if mean > 100 else 0)
    assert (found.diff() >= 0).all()


def test_poisson_numbers_stop_at_the_limit() -> None:
    uniforms = torch.tensor([0.01, 0.5, 0.99, 1 - 2**-53], dtype=torch.float64)
    means = torch.full_like(uniforms, 3.0)
    free = poisson(means, uniforms, torch.full((4,), 1000))
    for limit in (0, 1, 2, 5):
        assert torch.equal(poisson(means, uniforms, torch.full((4,), limit)), free.clamp(max=limit))


def test_what_does_not_fit_is_cut() -> None:
    counts = torch.tensor([[2, 0, 3, 1]]).expand(600, 4)
    keys = torch.rand(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for budget in range(8):
        kept = fit_to_budget(counts, torch.full((600,), budget), keys)
        assert (kept <= counts).all()
        assert (kept >= 0).all()
        assert (kept.sum(1) == min(budget, 6)).all(), "what fits is kept"
    kept = fit_to_budget(counts, torch.full((600,), 3), keys).double().mean(0)
    expected = torch.zeros(4, dtype=torch.float64)
    for order in itertools.permutations(range(4)):
        left = 3
        for slot in order:
            taken = min(left, int(counts[0, slot]))
            expected[slot] += taken / 24
            left -= taken
    torch.testing.assert_close(kept, expected, rtol=0, atol=4 * 1.5 / math.sqrt(600))
