"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_flexmdm.types_flexmdm import FlexMDMLossOutput


class FlexMDMMetrics:
    """The loss's two terms per target token, and how many masked tokens are predicted right.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        integers = {name: torch.tensor(0) for name in ("tokens", "num_masked", "num_correct")}
        floats = {name: torch.tensor(0.0, dtype=torch.float64) for name in ("unmasking", "insertion")}
        self.sums = integers | floats

    def update(self, output: FlexMDMLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "tokens": output.loss_count,
            "num_masked": output.num_masked,
            "num_correct": output.num_correct,
            **output.terms,
        }
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """``unmasking_loss``, ``insertion_loss`` (nats per token), ``masked_accuracy``; zeros if empty."""
        tokens, masked = max(int(self.sums["tokens"]), 1), max(int(self.sums["num_masked"]), 1)
        return {
            "unmasking_loss": float(self.sums["unmasking"]) / tokens,
            "insertion_loss": float(self.sums["insertion"]) / tokens,
            "masked_accuracy": int(self.sums["num_correct"]) / masked,
        }
