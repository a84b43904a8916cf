"""Poisson numbers, and what happens to those that do not fit."""

import math

import pytest
import torch

from xlm_flexmdm import insertions, poisson


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


def test_thinned_arrivals_are_poisson_numbers_of_each_slot() -> None:
    """A budget of 6, a factor of 1/2 and g = 1.2, 0 and 3: independent numbers of mean 0.6, 0 and 1.5."""
    rows = 20000
    generator = torch.Generator().manual_seed(0)
    budget = torch.full((rows,), 6)
    level = torch.rand(rows, generator=generator, dtype=torch.float64)
    arrivals = poisson(torch.full((rows,), 3.0, dtype=torch.float64), level, torch.full((rows,), 70))
    uniforms = torch.rand(rows, int(arrivals.max()), generator=generator, dtype=torch.float64)
    gaps = torch.tensor([[1.2, 0.0, 3.0]], dtype=torch.float64).expand(rows, 3)
    counts = insertions(gaps, arrivals, budget, uniforms).double()
    expected = torch.tensor([0.6, 0.0, 1.5], dtype=torch.float64)
    deviation = 5 * (expected / rows).sqrt()
    assert ((counts.mean(0) - expected).abs() <= deviation).all()
    assert ((counts.var(0) - expected).abs() <= 10 * deviation).all()
    assert abs(torch.corrcoef(counts[:, [0, 2]].T)[0, 1]) < 5 / math.sqrt(rows)


def test_what_does_not_fit_is_dropped() -> None:
    rows = 3000
    uniforms = torch.rand(rows, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps = torch.tensor([[2.0, 0.0, 6.0]], dtype=torch.float64).expand(rows, 3)
    for budget in range(8):
        kept = insertions(gaps, torch.full((rows,), 6), torch.full((rows,), budget), uniforms)
        assert (kept.sum(1) == min(budget, 6)).all(), "a sum of g above the budget accepts every arrival"
        share = kept.double().sum(0) / max(1, int(kept.sum()))
        assert share[1] == 0
        assert budget == 0 or abs(share[0] - 0.25) < 5 * math.sqrt(0.19 / int(kept.sum()))
