"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_editflow.types_editflow import EditFlowLossOutput


class EditFlowLossMetrics:
    """Means per row of the edits that remain and of those that the network expects.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        integers = {name: torch.tensor(0) for name in ("rows", "num_remaining", "num_finished")}
        names = ("rate_at_finished", "rate_at_unfinished")
        self.sums = integers | {name: torch.tensor(0.0, dtype=torch.float64) for name in names}

    def update(self, output: EditFlowLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "rows": output.loss_count,
            "num_remaining": output.num_remaining,
            "num_finished": output.num_finished,
            "rate_at_finished": output.rate_at_finished,
            "rate_at_unfinished": output.rate_at_unfinished,
        }
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """The means by name; zeros if nothing was added.

        ``mean_remaining`` is over all rows; ``expected_at_finished`` and ``expected_at_unfinished`` are the
        sums of the rates, which are the expected numbers of edits that remain, at rows in which none does and
        at the others: a network that knows has 0 in the first, and in the second ``mean_remaining`` divided
        by the fraction of such rows.
        """
        rows, finished = int(self.sums["rows"]), int(self.sums["num_finished"])
        return {
            "expected_at_finished": float(self.sums["rate_at_finished"]) / max(finished, 1),
            "expected_at_unfinished": float(self.sums["rate_at_unfinished"]) / max(rows - finished, 1),
            "mean_remaining": float(self.sums["num_remaining"]) / max(rows, 1),
        }
