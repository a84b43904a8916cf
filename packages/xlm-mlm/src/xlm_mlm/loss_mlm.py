"""The training objective of the masked language model and its likelihood bound.

With x the row, m the set of its masked cells and x_-m what is visible of it, a masked cell costs

    CE_i = -log p(x_i | x_-m),    p = softmax of the logits over the tokens that are possible there.

Logits are computed at masked cells only. There are no targets elsewhere, so there is no id such as -100
either.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from xlm.modules import TokenScores, prompt_sees_target, segment_mask
from xlm.modules.records import Likelihood
from xlm_mlm.types_mlm import MLMBatch, MLMLossOutput, MLMNetwork, prompt_of, score_tokens
from xlm_mlm.vocabulary_mlm import CellVocabulary

Normalise = Literal["masked_cells", "rows"]


class MLMLoss:
    """Mean cross-entropy of masked cells, over the batch or by row.

    "masked_cells" is the published loss (Devlin et al. 2019, arXiv:1810.04805; with uniform mask rates
    Ghazvininejad et al. 2019, arXiv:1904.09324): a row weighs as much as it has masks, so high mask rates
    prevail. "rows" gives each row the same weight whatever its rate. With mask rates uniform on (0, 1) the
    mean of a row has the expectation bound / (L + 1), where L is the number of its cells that can be masked
    and bound is what :meth:`likelihood` estimates.

    Args:
        mask_id: Id of MASK, which has probability 0.
        pad_id: Id of PAD, possible only where the text may end.
        eos_id: Id of EOS, possible only where the text may end; None if EOS, if there is one, is a
            token like any other.
        suppressed_ids: Further ids that never stand in a text and have probability 0. EOS and PAD among them
            stay possible where the text may end.
        normalise: What loss_count counts. "masked_cells": loss_sum is the sum over masked cells. "rows": it
            is the sum over rows of the row's mean, 0 for a row without masks; all rows with a cell that can
            be masked are counted.

    Raises:
        ValueError: If normalise is neither, or MASK is also PAD or EOS.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        normalise: Normalise = "masked_cells",
    ) -> None:
        if normalise not in ("masked_cells", "rows"):
            raise ValueError(f"normalise must be 'masked_cells' or 'rows', got {normalise!r}")
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._normalise = normalise

    def __call__(self, model: MLMNetwork, batch: MLMBatch) -> MLMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a masked token is impossible in its cell (on a device, the loss is infinite).
        """
        row, num_masked = batch["masked_row"], batch["masked"].sum(1)
        # With "rows", the weight of a cell is 1 / masks of its row: rows without masks add nothing.
        by_row = self._normalise == "rows"
        weight = 1 / num_masked[row].double() if by_row else torch.ones_like(row, dtype=torch.float64)
        scores = self._masked_cells(model, batch, weight)
        correct = scores.best == batch["target_ids"][row, batch["masked_column"]]
        return MLMLossOutput(
            loss_sum=scores.loss,
            loss_count=(batch["num_eligible"] > 0).sum() if by_row else num_masked.sum(),
            terms={"token": scores.loss},
            num_masked=num_masked.sum(),
            num_eligible=batch["num_eligible"].sum(),
            num_correct=correct.sum(),
        )

    def likelihood(self, model: MLMNetwork, batch: MLMBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x), independent of the normaliser of the training loss.

        Filling the L cells one by one in the order s, with everything filled so far visible, has the
        distribution p(x | s). In a uniformly random order it is p(x) = E_s p(x | s), and by Jensen's
        inequality

            -log p(x) <= E_s -log p(x | s) = sum_{n=1}^{L} E_{|m|=n} (1/n) sum_{i in m} CE_i

        with m a uniform set of n cells (the bound of order-agnostic models, Hoogeboom et al. 2022,
        arXiv:2110.02037). Two kinds of batches estimate the right side without bias, each by
        weight * sum_{i in m} CE_i:

            n ~ U{1..L}: weight L/n (MLMLikelihoodCollator);
            t ~ U(0, 1) and cells masked with probability t, so that n ~ U{0..L}: weight (L + 1)/n, and 0 if
            n = 0 (MLMCollator).

        The mean over the rows of an example is the result. It bounds the distribution of a predictor that
        fills one cell per step in random order, at temperature 1 without filters, with the same suppressed
        ids.

        Raises:
            ValueError: If the batch has a fixed mask rate, or a masked token is impossible in its cell.
        """
        if "likelihood_weight" not in batch:
            raise ValueError(
                "rows with a fixed mask rate have no likelihood: the bound is a mean over all numbers of "
                "masks. Use MLMLikelihoodCollator, or MLMCollator without mask_rate and schedule"
            )
        row, weight = batch["masked_row"], batch["likelihood_weight"]
        entropy = -self._masked_cells(model, batch, weight[row]).log_probs
        bound = torch.zeros_like(weight).index_add(0, row, weight[row] * entropy)
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=bound.view(-1, num_draws).mean(1),
            num_tokens=batch["num_tokens"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=bool(batch["models_length"].all()),
        )

    def _masked_cells(self, model: MLMNetwork, batch: MLMBatch, weight: Tensor) -> TokenScores:
        """The cross-entropies of the masked cells and their sum with the cells' weights (cells,)."""
        row, column = batch["masked_row"], batch["masked_column"]
        token = batch["target_ids"][row, column]
        mask = segment_mask(batch["segment_ids"]) if "segment_ids" in batch else batch["attention_mask"]
        scores = score_tokens(
            model,
            batch["input_ids"],
            mask,
            positions=row * batch["input_ids"].shape[1] + column,
            **(
                {}
                if prompt_sees_target(model)
                else {"prompt": prompt_of(batch["input_ids"], batch["prompt_length"])}
            ),
            targets=self._vocabulary.targets(token, weight, batch["may_end"][row, column]),
        )
        _check_possible(token, scores.log_probs)
        return scores


def _check_possible(targets: Tensor, log_weights: Tensor) -> None:
    """Refuse masked tokens of probability 0; on a device, the check would force a synchronisation."""
    if targets.device.type != "cpu":
        return
    impossible = targets[log_weights == -math.inf]
    if len(impossible) > 0:
        raise ValueError(
            f"a cell holds token id {int(impossible[0])}, which is impossible there: it is MASK, one of "
            f"suppressed_ids, or EOS or PAD where the text cannot end"
        )
