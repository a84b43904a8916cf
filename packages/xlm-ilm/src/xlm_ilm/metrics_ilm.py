"""Metrics of the training loss that only this family has."""

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_ilm.types_ilm import ILMLossOutput

_NUM_ROWS = ("num_complete", "num_incomplete")


class ILMLossMetrics:
    """The output of the stop head and the number of dropped tokens, as means per row.

    The accuracy of the stop head would say little: few rows are complete, and who never stops is right at all
    others. So P(stop) is averaged apart where it should be high and where it should be low.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        integers = {name: torch.tensor(0) for name in ("rows", "num_dropped", *_NUM_ROWS)}
        names = ("stop_at_complete", "stop_at_incomplete")
        self.sums = integers | {name: torch.tensor(0.0, dtype=torch.float64) for name in names}

    def update(self, output: ILMLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {
            "rows": output.loss_count,
            "num_dropped": output.num_dropped,
            "num_complete": output.num_complete,
            "num_incomplete": output.num_incomplete,
            "stop_at_complete": output.stop_at_complete,
            "stop_at_incomplete": output.stop_at_incomplete,
        }
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """The means by name; zeros if nothing was added.

        ``mean_dropped`` is over all rows; ``stop_at_complete`` is P(stop) at rows in which nothing is
        missing, ``stop_at_incomplete`` at rows in which something is. Rows whose target is given whole are in
        neither.
        """
        rows = max(int(self.sums["rows"]), 1)
        num_complete, num_incomplete = (max(int(self.sums[name]), 1) for name in _NUM_ROWS)
        return {
            "stop_at_complete": float(self.sums["stop_at_complete"]) / num_complete,
            "stop_at_incomplete": float(self.sums["stop_at_incomplete"]) / num_incomplete,
            "mean_dropped": float(self.sums["num_dropped"]) / rows,
        }
