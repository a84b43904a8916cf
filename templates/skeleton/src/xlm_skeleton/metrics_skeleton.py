"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm_skeleton.types_skeleton import SkeletonLossOutput


class SkeletonMetrics:
    """How many masked cells are predicted right.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = {"num_correct": torch.tensor(0), "num_masked": torch.tensor(0)}

    def update(self, output: SkeletonLossOutput) -> None:
        """Add the counts of one batch."""
        added = {"num_correct": output.num_correct, "num_masked": output.loss_count}
        self.sums = {name: total.to(added[name].device) + added[name] for name, total in self.sums.items()}

    def compute(self) -> dict[str, float]:
        """``masked_accuracy``; 0 if nothing was added."""
        return {"masked_accuracy": int(self.sums["num_correct"]) / max(int(self.sums["num_masked"]), 1)}
