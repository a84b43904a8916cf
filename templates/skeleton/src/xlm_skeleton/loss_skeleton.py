"""The training objective and the likelihood bound that it estimates."""

import torch
from torch import Tensor, nn

from xlm_skeleton.types_skeleton import SkeletonBatch, SkeletonLikelihood, SkeletonLossOutput, call_model


class SkeletonLoss:
    """Cross-entropy of masked cells: CE_i = -log p(x_i | what is visible)."""

    def __call__(self, model: nn.Module, batch: SkeletonBatch) -> SkeletonLossOutput:
        """Evaluate the network on a batch; the mean is ``loss_sum / loss_count``."""
        entropy, correct = _masked_cells(model, batch)
        loss_sum = entropy.sum()
        return SkeletonLossOutput(
            loss_sum=loss_sum,
            loss_count=correct.new_full((), len(correct), dtype=torch.int64),
            terms={"token": loss_sum},
            num_correct=correct.sum(),
        )

    def likelihood(self, model: nn.Module, batch: SkeletonBatch) -> SkeletonLikelihood:
        """Estimate an upper bound of -log p(x) without bias.

        Filling the L missing tokens one by one in a uniformly random order has the law p(x). With n ~ U{1..L}
        and m a uniform set of n of them (order-agnostic models, Hoogeboom et al. 2022, arXiv:2110.02037),

            -log p(x) <= E_n E_m (L / n) sum_{i in m} CE_i.
        """
        entropy, _ = _masked_cells(model, batch)
        row, num_missing = batch["masked_row"], batch["num_missing"]
        num_masked = torch.zeros_like(num_missing).index_add(0, row, torch.ones_like(row))
        summed = torch.zeros(len(num_missing), dtype=torch.float64, device=entropy.device)
        summed = summed.index_add(0, row, entropy.double())
        return SkeletonLikelihood(nll=summed * num_missing / num_masked.clamp(min=1), num_tokens=num_missing)


def _masked_cells(model: nn.Module, batch: SkeletonBatch) -> tuple[Tensor, Tensor]:
    """Of each masked cell (cells,): cross-entropy, and whether the most probable token is right."""
    row, column = batch["masked_row"], batch["masked_column"]
    cells = row * batch["input_ids"].shape[1] + column
    logits = call_model(model, batch["input_ids"], batch["attention_mask"], positions=cells)
    targets = batch["target_ids"][row, column]
    if logits.dtype != torch.float64:
        logits = logits.float()  # half precision is for the network, not for sums
    entropy = nn.functional.cross_entropy(logits, targets, reduction="none")
    return entropy, logits.detach().argmax(1) == targets
