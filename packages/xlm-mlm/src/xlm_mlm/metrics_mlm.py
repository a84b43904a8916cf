"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_mlm.types_mlm import MLMLossOutput


class MLMMetrics:
    """How many masked cells are predicted right, and how many cells are masked.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = {name: torch.tensor(0) for name in ("num_masked", "num_eligible", "num_correct")}

    def update(self, output: MLMLossOutput) -> None:
        """Add the counts of one batch without synchronising with the device."""
        added = {
            "num_masked": output.num_masked,
            "num_eligible": output.num_eligible,
            "num_correct": output.num_correct,
        }
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """``masked_accuracy`` and ``mean_mask_rate`` over cells; zeros if nothing was added."""
        masked, eligible = int(self.sums["num_masked"]), int(self.sums["num_eligible"])
        return {
            "masked_accuracy": int(self.sums["num_correct"]) / max(masked, 1),
            "mean_mask_rate": masked / max(eligible, 1),
        }
