"""Metrics that need more than sums: lists of rows, joined over batches and ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xlm.core.evaluation.metrics import SummedMetric


class Distinct:
    """Counts different numbers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums = {"seen": torch.zeros((), dtype=torch.int64)}
        self.lists = {"numbers": torch.zeros((0, 2), dtype=torch.int64)}

    def update(self, numbers: Tensor) -> None:
        self.sums["seen"] += len(numbers)
        self.lists["numbers"] = torch.cat([self.lists["numbers"], torch.stack([numbers, numbers], dim=1)])

    def compute(self) -> Mapping[str, float]:
        return {"seen": float(self.sums["seen"]), "distinct": float(len(self.lists["numbers"].unique(dim=0)))}


def test_lists_are_joined_over_batches_and_forgotten() -> None:
    metric = SummedMetric[Tensor](Distinct())
    for batch in ([1, 2], [2, 3], []):
        metric.update(torch.tensor(batch, dtype=torch.int64))
    assert metric.compute() == {"seen": 4.0, "distinct": 3.0}
    metric.reset()
    metric.update(torch.tensor([5]))
    assert metric.compute() == {"seen": 1.0, "distinct": 1.0}


def test_lists_of_several_ranks_are_joined() -> None:
    """torchmetrics hands over one tensor once the ranks are joined; a rank without rows adds a flat one."""
    metric = SummedMetric[Tensor](Distinct())
    metric.update(torch.tensor([1, 2]))
    metric.numbers = torch.tensor([[1, 1], [2, 2], [7, 7]])
    assert metric.compute()["distinct"] == 3.0
    metric = SummedMetric[Tensor](Distinct())
    metric.update(torch.tensor([], dtype=torch.int64))
    metric.numbers = [torch.zeros(0), torch.tensor([[4, 4]])]
    assert metric.compute()["distinct"] == 1.0
