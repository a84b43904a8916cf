"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm_ilm.types_ilm import ILMLossOutput


class ILMLossMetrics:
    """Means per row of the loss's terms, how often the stop head is right, how many tokens were dropped.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        integers = {name: torch.tensor(0) for name in ("rows", "num_dropped", "num_stop_correct")}
        floats = {name: torch.tensor(0.0, dtype=torch.float64) for name in ("token", "stop")}
        self.sums = integers | floats

    def update(self, output: ILMLossOutput) -> None:
        """Add the sums of one batch; no gradient is kept, and nothing waits for the device."""
        added = {
            "rows": output.loss_count,
            "num_dropped": output.num_dropped,
            "num_stop_correct": output.num_stop_correct,
            **output.terms,
        }
        self.sums = {
            name: total.to(added[name].device) + added[name].detach() for name, total in self.sums.items()
        }

    def compute(self) -> dict[str, float]:
        """``token_loss``, ``stop_loss``, ``stop_accuracy``, ``mean_dropped``; zeros if nothing was added."""
        rows = max(int(self.sums["rows"]), 1)
        return {
            "token_loss": float(self.sums["token"]) / rows,
            "stop_loss": float(self.sums["stop"]) / rows,
            "stop_accuracy": float(self.sums["num_stop_correct"]) / rows,
            "mean_dropped": float(self.sums["num_dropped"]) / rows,
        }
