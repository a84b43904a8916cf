"""Confidence intervals of 95 % over rows, by the Poisson bootstrap.

Each row has an independent Poisson(1) weight in each replicate (Hanley and MacGibbon, 2006; Chamandy et al.,
VLDB 2012), so rows are resampled in one pass, in memory independent of their number. For ratios of sums, as
all metrics of rows are, the intervals equal those of the usual bootstrap. The weights are a function of the
position of the row alone: replicates of two runs on the same rows are paired, and the quantiles of their
differences are a paired interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlm.eval.pairs import TAIL

REPLICATES = 1000
CHUNK = 256
"""Rows whose weights are drawn at once."""
MOST = 12
"""Largest weight; a larger one has the probability 6e-11."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Resampled:
    """Sums over rows, and over the rows of each replicate.

    Args:
        num_sums: Sums of a row.
        seed: Seed of the weights; runs are paired if it is the same.
    """

    def __init__(self, num_sums: int, *, seed: int = 0) -> None:
        self.totals = torch.zeros(num_sums, dtype=torch.float64)
        """(sums,) over all rows."""
        self.replicates = torch.zeros(REPLICATES, num_sums, dtype=torch.float64)
        """(replicates, sums)"""
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: list[Tensor] = []
        # A weight is the number of thresholds below a uniform number (inverse of the Poisson distribution).
        factorials = torch.arange(MOST, dtype=torch.float64).clamp(min=1).cumprod(0)
        self._thresholds = ((-1.0 - factorials.log()).exp().cumsum(0)).float()

    def add(self, row: Sequence[float]) -> None:
        """Add the sums of one row."""
        self._waiting.append(torch.tensor(row, dtype=torch.float64))
        if len(self._waiting) == CHUNK:
            self.finish()

    def finish(self) -> None:
        """Resample the last rows."""
        if self._waiting:
            rows = torch.stack(self._waiting)
            self._waiting.clear()
            self.totals += rows.sum(0)
            self.replicates += weights(len(rows), self._generator, self._thresholds).double() @ rows


def weights(num_rows: int, generator: torch.Generator, thresholds: Tensor) -> Tensor:
    """(replicates, rows) weights of the next rows."""
    uniform = torch.rand(num_rows, REPLICATES, generator=generator)
    return torch.bucketize(uniform, thresholds, right=True).T


def percentile(value: float, replicates: Tensor) -> Interval:
    """The interval between two quantiles of a statistic of the replicates, (replicates,)."""
    low, high = torch.quantile(
        replicates.double(), torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    ).tolist()
    return Interval(value, low, high)
