"""Metrics of the training loss that only this family has."""

import math

import torch
from torch import Tensor

from xlm.modules import add_sums
from xlm_arlm.types_arlm import ARLMLossOutput


class ARLMMetrics:
    """Mean cross entropy of the predicted target tokens, EOS included.

    It is independent of other terms of the loss.

    ``sums`` is the whole state: adding up those of several processes gives their common result.
    """

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums = {"target": torch.tensor(0.0, dtype=torch.float64), "num_target": torch.tensor(0)}

    def update(self, output: ARLMLossOutput) -> None:
        """Add the sums of one batch; without gradient and without synchronising with the device."""
        added = {"target": output.terms["target"], "num_target": output.num_target}
        self.sums = add_sums(self.sums, added)

    def compute(self) -> dict[str, float]:
        """``target_loss`` in nats per token and ``target_perplexity``, its exponential; zeros if empty."""
        num_target = int(self.sums["num_target"])
        if num_target == 0:
            return {"target_loss": 0.0, "target_perplexity": 0.0}
        mean = float(self.sums["target"]) / num_target
        # exp overflows above 709.
        return {"target_loss": mean, "target_perplexity": math.exp(min(mean, 700.0))}
