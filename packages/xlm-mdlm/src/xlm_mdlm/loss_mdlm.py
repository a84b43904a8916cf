"""The training objective of masked diffusion and its likelihood bound.

With x_0 a row of L cells, x_t what is left of it after masking each with probability 1 - alpha_t, and

    CE_i = -log p_theta(x_0^i | x_t)   at a masked cell i, the softmax being over the tokens possible there,

the negative ELBO in continuous time is (Sahoo et al. 2024, arXiv:2406.07524, section 3.4)

    -log p(x_0) <= NELBO(x_0) = int_0^1 w(t) E_{x_t} sum_{masked i} CE_i dt, w(t) = -alpha'_t / (1 - alpha_t).

Unmasked cells cost nothing, as the model copies them. Logits are computed at masked cells only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlm.modules import prompt_sees_target, segment_mask
from xlm.modules.records import Likelihood
from xlm_mdlm.types_mdlm import NUM_LEVELS, MDLMBatch, MDLMLossOutput, MDLMNetwork, prompt_of, score_tokens
from xlm_mdlm.vocabulary_mdlm import CellVocabulary


class MDLMLoss:
    """sum over rows of w(t) sum over masked cells of CE, normalised by all cells, masked or not.

    loss_sum / loss_count is an estimate of the NELBO in nats per cell. The weights come with the batch, so
    one loss serves every noise schedule. They do not change what is learnt: for all schedules with alpha_0 =
    1 and alpha_1 = 0 the expectation is the same.

    Args:
        mask_id: Id of MASK, which has probability 0.
        pad_id: Id of PAD, possible only where the text may end.
        eos_id: Id of EOS, possible only where the text may end; None if no token ends a text and EOS, if
            there is one, is a token like any other.
        suppressed_ids: Further ids that never stand in a text and have probability 0. EOS and PAD among them
            stay possible where the text may end.

    Raises:
        ValueError: If MASK is also PAD or EOS.
    """

    def __init__(
        self, *, mask_id: int, pad_id: int, eos_id: int | None, suppressed_ids: Sequence[int] = ()
    ) -> None:
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )

    def __call__(self, model: MDLMNetwork, batch: MDLMBatch) -> MDLMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a masked token is impossible in its cell (on a device, the loss is infinite).
        """
        cells = self._masked_cells(model, batch, batch["weight"])
        num_masked, num_eligible = batch["masked"].sum(1), batch["num_eligible"]
        # The interval of n / L in (0, 1] among NUM_LEVELS equal ones, closed on the right; 0 adds nothing.
        level = ((num_masked * NUM_LEVELS - 1) // num_eligible.clamp(min=1)).clamp(min=0)
        level_of_cell, entropy = level[cells.row], cells.entropy
        return MDLMLossOutput(
            loss_sum=cells.weighted_sum,
            loss_count=num_eligible.sum(),
            terms={"token": cells.weighted_sum},
            num_masked=num_masked.sum(),
            num_correct=cells.correct.sum(),
            masked_by_level=level.new_zeros(NUM_LEVELS).index_add(0, level, num_masked),
            entropy_by_level=entropy.new_zeros(NUM_LEVELS).index_add(0, level_of_cell, entropy),
        )

    def likelihood(self, model: MDLMNetwork, batch: MDLMBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x_0), independent of the training schedule.

        A network that is not conditioned on time defines one distribution, p(x) = E_s prod_i p_theta(x_s(i) |
        x_s(1..i-1)) with s a uniformly random order of the cells: the distribution of the sampler as its
        steps become many. Its NELBO is the same for every complete schedule,

            NELBO(x) = E_s -log p_theta(x | s) = sum_{n=1}^{L} E_{|m|=n} (1/n) sum_{i in m} CE_i,

        m being a uniform set of n masked cells. Rows with n ~ U{1..L} and the weight L/n estimate it without
        bias and without the cut near t = 0 of the training times. A network that is conditioned on time is
        evaluated at mask probabilities u ~ U(0, 1), with the weight 1/u. Both kinds are made by
        :class:`xlm_mdlm.MDLMLikelihoodCollator`; the mean over the rows of an example is the result.

        Raises:
            ValueError: If the batch is one for training, or a masked token is impossible in its cell.
        """
        if "num_draws" not in batch:
            raise ValueError(
                "a training batch has no likelihood: its times begin at min_time and follow the training "
                "schedule. Use MDLMLikelihoodCollator"
            )
        weight = batch["weight"]
        cells = self._masked_cells(model, batch, weight)
        bound = torch.zeros_like(weight).index_add(0, cells.row, weight[cells.row] * cells.entropy)
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=bound.view(-1, num_draws).mean(1),
            num_tokens=batch["num_tokens"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=bool(batch["models_length"].all()),
        )

    def _masked_cells(self, model: MDLMNetwork, batch: MDLMBatch, weight: Tensor) -> "_MaskedCells":
        """The masked cells, and the sum over them of CE times the weight (rows,) of their row."""
        row, column = batch["masked_row"], batch["masked_column"]
        token = batch["target_ids"][row, column]
        targets = self._vocabulary.targets(token, weight[row], batch["may_end"][row, column])
        mask = segment_mask(batch["segment_ids"]) if "segment_ids" in batch else batch["attention_mask"]
        scores = score_tokens(
            model,
            batch["input_ids"],
            mask,
            batch.get("noise"),
            positions=row * batch["input_ids"].shape[1] + column,
            **(
                {}
                if prompt_sees_target(model)
                else {"prompt": prompt_of(batch["input_ids"], batch["prompt_length"])}
            ),
            targets=targets,
        )
        _check_possible(token, scores.log_probs)
        return _MaskedCells(
            weighted_sum=scores.loss, entropy=-scores.log_probs, row=row, correct=scores.best == token
        )


@dataclass(frozen=True)
class _MaskedCells:
    """The masked cells of all rows, (cells,) each."""

    weighted_sum: Tensor
    """Sum of weight * CE, the only part that has a gradient: shape ()."""
    entropy: Tensor
    """CE in nats."""
    row: Tensor
    correct: Tensor
    """Whether the most probable token is the right one."""


# Copied from xlm_mlm.loss_mlm._check_possible
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
