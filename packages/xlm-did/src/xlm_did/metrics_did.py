"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_did.types_did import DIDLossOutput

_NUM_ROWS = ("num_complete", "num_incomplete")


class DIDLossMetrics:
    """The output of the length head and the number of deleted tokens, as means per row.

    The accuracy of "nothing is missing" would say little: few rows are complete. So its probability is
    averaged apart where it should be high and where it should be low.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        integers = {name: torch.tensor(0) for name in ("rows", "num_dropped", *_NUM_ROWS)}
        names = ("chance_at_complete", "chance_at_incomplete")
        self.sums = integers | {name: torch.tensor(0.0, dtype=torch.float64) for name in names}

    def update(self, output: DIDLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "rows": output.loss_count,
            "num_dropped": output.num_dropped,
            "num_complete": output.num_complete,
            "num_incomplete": output.num_incomplete,
            "chance_at_complete": output.chance_at_complete,
            "chance_at_incomplete": output.chance_at_incomplete,
        }
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """The means by name; zeros if nothing was added.

        ``mean_dropped`` is over all rows; ``complete_at_complete`` is P(nothing is missing) at rows in which
        nothing is, ``complete_at_incomplete`` at rows in which something is. Rows that cannot grow are in
        neither.
        """
        rows = max(int(self.sums["rows"]), 1)
        num_complete, num_incomplete = (max(int(self.sums[name]), 1) for name in _NUM_ROWS)
        return {
            "complete_at_complete": float(self.sums["chance_at_complete"]) / num_complete,
            "complete_at_incomplete": float(self.sums["chance_at_incomplete"]) / num_incomplete,
            "mean_dropped": float(self.sums["num_dropped"]) / rows,
        }
