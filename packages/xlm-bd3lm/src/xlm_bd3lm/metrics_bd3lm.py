"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_bd3lm.types_bd3lm import NUM_LEVELS, BD3LMLossOutput

_LEVELS = [f"{100 * level // NUM_LEVELS}_{100 * (level + 1) // NUM_LEVELS}" for level in range(NUM_LEVELS)]


# Copied from xlm_mdlm.metrics_mdlm.MDLMMetrics
class BD3LMMetrics:
    """How many masked cells are predicted right, how many are masked, and their loss by noise level.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        counts = ("num_cells", "num_masked", "num_correct", *(f"masked_{level}" for level in _LEVELS))
        integers = {name: torch.tensor(0) for name in counts}
        floats = {f"entropy_{level}": torch.tensor(0.0, dtype=torch.float64) for level in _LEVELS}
        self.sums = integers | floats

    def update(self, output: BD3LMLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "num_cells": output.loss_count,
            "num_masked": output.num_masked,
            "num_correct": output.num_correct,
        }
        by_level = zip(_LEVELS, output.masked_by_level, output.entropy_by_level, strict=True)
        for level, masked, entropy in by_level:
            added |= {f"masked_{level}": masked, f"entropy_{level}": entropy}
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """Means over masked cells; zeros where nothing was added.

        Returns:
            ``masked_accuracy``; ``mean_mask_rate`` over all cells; and ``entropy_0_25`` and so on, the mean
            cross-entropy in nats of masked cells in blocks with more than 0 and up to 25 per cent masks.
        """
        means = {
            "masked_accuracy": self._ratio("num_correct", "num_masked"),
            "mean_mask_rate": self._ratio("num_masked", "num_cells"),
        }
        return means | {
            f"entropy_{level}": self._ratio(f"entropy_{level}", f"masked_{level}") for level in _LEVELS
        }

    def _ratio(self, name: str, of: str) -> float:
        return float(self.sums[name]) / max(int(self.sums[of]), 1)
