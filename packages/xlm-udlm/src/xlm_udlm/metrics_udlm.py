"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_udlm.types_udlm import NUM_LEVELS, UDLMLossOutput

_LEVELS = [f"{100 * level // NUM_LEVELS}_{100 * (level + 1) // NUM_LEVELS}" for level in range(NUM_LEVELS)]


class UDLMMetrics:
    """How many cells are predicted right, how many differ from the text, and cross entropy by noise level.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        counts = ("num_cells", "num_noised", "num_correct", *(f"cells_{level}" for level in _LEVELS))
        integers = {name: torch.tensor(0) for name in counts}
        floats = {f"entropy_{level}": torch.tensor(0.0, dtype=torch.float64) for level in _LEVELS}
        self.sums = integers | floats

    def update(self, output: UDLMLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "num_cells": output.loss_count,
            "num_noised": output.num_noised,
            "num_correct": output.num_correct,
        }
        by_level = zip(_LEVELS, output.cells_by_level, output.entropy_by_level, strict=True)
        for level, cells, entropy in by_level:
            added |= {f"cells_{level}": cells, f"entropy_{level}": entropy}
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """Means over free cells; zeros where nothing was added.

        Returns:
            ``accuracy`` of the most probable token given the other cells; ``mean_noise_rate``, the fraction
            of cells whose token differs from the text; and ``entropy_0_25`` and so on, the mean cross entropy
            in nats of cells in rows with a noise 1 - alpha of more than 0 and up to 25 per cent.
        """
        means = {
            "accuracy": self._ratio("num_correct", "num_cells"),
            "mean_noise_rate": self._ratio("num_noised", "num_cells"),
        }
        return means | {
            f"entropy_{level}": self._ratio(f"entropy_{level}", f"cells_{level}") for level in _LEVELS
        }

    def _ratio(self, name: str, of: str) -> float:
        return float(self.sums[name]) / max(int(self.sums[of]), 1)
