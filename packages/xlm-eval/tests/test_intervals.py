"""Coverage of the intervals: 1,000 simulated runs of which 95 % contain the truth, within its own error."""

import math

import torch
from torch import Tensor

from xlm.eval.intervals import Resampled, percentile
from xlm.eval.tables import summary

SIMULATIONS = 1000
ERROR = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)
"""Three standard errors of a coverage of 95 %."""


def resampled(rows: Tensor, seed: int = 0) -> Resampled:
    """The sums of ``rows``, (rows, sums)."""
    found = Resampled(rows.shape[1], seed=seed)
    for row in rows.tolist():
        found.add(row)
    found.finish()
    return found


def ratios(rows: Tensor, weights: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ratio of two sums of each simulation, (simulations,), and its replicates, (replicates, simulations)."""
    found = resampled(torch.cat([rows, weights], 1), seed)
    upper, lower = found.totals.chunk(2)
    replicates, of_weights = found.replicates.chunk(2, 1)
    return upper / lower, replicates / of_weights


def coverage(values: Tensor, replicates: Tensor, truth: float) -> float:
    intervals = [percentile(float(value), each) for value, each in zip(values, replicates.T, strict=True)]
    return sum(each.low <= truth <= each.high for each in intervals) / len(intervals)


def test_of_the_mean_of_skewed_rows() -> None:
    """Such as nats per row: a gamma distribution of mean 2."""
    generator = torch.Generator().manual_seed(1)
    rows = -torch.rand(2, 300, SIMULATIONS, generator=generator).log().sum(0)
    assert abs(coverage(*ratios(rows, torch.ones_like(rows)), 2.0) - 0.95) < ERROR


def test_of_a_ratio_of_sums() -> None:
    """Such as nats per token: rows of 1 to 9 tokens, of 1.5 nats each on average."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 10, (300, SIMULATIONS), generator=generator).float()
    nats = tokens * (1.5 + torch.randn(300, SIMULATIONS, generator=generator))
    assert abs(coverage(*ratios(nats, tokens), 1.5) - 0.95) < ERROR


def test_of_a_fraction() -> None:
    generator = torch.Generator().manual_seed(3)
    right = (torch.rand(300, SIMULATIONS, generator=generator) < 0.7).float()
    assert abs(coverage(*ratios(right, torch.ones_like(right)), 0.7) - 0.95) < ERROR


def runs_on_the_same_rows(seed: int) -> tuple[Tensor, Tensor]:
    """Nats of two runs: the difficulty of a row (variance 1), its noise in each run (0.25), a gap of 0.3."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, SIMULATIONS, generator=generator)
    noise = torch.randn(2, 300, SIMULATIONS, generator=generator) / 2
    return rows + noise[0] + 0.3, rows + noise[1]


def test_of_a_paired_difference() -> None:
    first, second = runs_on_the_same_rows(4)
    values, replicates = ratios(first, torch.ones_like(first))
    others, of_others = ratios(second, torch.ones_like(second))
    assert abs(coverage(values - others, replicates - of_others, 0.3) - 0.95) < ERROR


def test_pairing_removes_the_variance_of_the_rows() -> None:
    """The variance of the difference is 2 * 0.25 / rows on the same rows, else 2 * 1.25 / rows."""
    first, second = runs_on_the_same_rows(5)
    ones = torch.ones_like(first)
    _, replicates = ratios(first, ones)
    _, same = ratios(second, ones)
    _, independent = ratios(second, ones, seed=1)
    paired, unpaired = ((replicates - others).var(0).mean() for others in (same, independent))
    assert abs(float(paired) * 300 - 0.5) < 0.02
    assert abs(float(unpaired) * 300 - 2.5) < 0.1


def test_of_the_mean_over_seeds() -> None:
    """Student's interval, with three and five seeds."""
    generator = torch.Generator().manual_seed(6)
    for count in (3, 5):
        values = torch.randn(SIMULATIONS, count, generator=generator, dtype=torch.float64)
        found = [summary({str(i): value for i, value in enumerate(row)}) for row in values.tolist()]
        inside = sum(abs(each.mean) <= (each.half_width or 0.0) for each in found) / SIMULATIONS
        assert abs(inside - 0.95) < ERROR


def test_weights_have_the_moments_of_poisson() -> None:
    found = resampled(torch.ones(700, 1))
    assert float(found.totals) == 700
    assert abs(float(found.replicates.mean()) / 700 - 1) < 0.01
    assert abs(float(found.replicates.var()) / 700 - 1) < 0.15
