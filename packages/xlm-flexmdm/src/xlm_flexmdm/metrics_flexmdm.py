"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_flexmdm.types_flexmdm import FlexMDMLossOutput


class FlexMDMMetrics:
    """How many masked tokens are predicted right.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = {name: torch.tensor(0) for name in ("num_masked", "num_correct")}

    def update(self, output: FlexMDMLossOutput) -> None:
        """Add the counts of one batch without synchronising with the device."""
        added = {"num_masked": output.num_masked, "num_correct": output.num_correct}
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """``masked_accuracy``; zero if nothing was added."""
        return {"masked_accuracy": int(self.sums["num_correct"]) / max(int(self.sums["num_masked"]), 1)}
