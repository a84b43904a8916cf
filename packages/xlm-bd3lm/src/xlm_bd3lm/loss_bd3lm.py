"""The training objective of block diffusion and its likelihood bound.

With x^b the b-th block of a row and x^{<b} what stands before it,

    log p(x) = sum_b log p(x^b | x^{<b}),

and each block has a masked diffusion of its own, with its own time (Arriola et al. 2025, arXiv:2503.09573,
section 3). With x_t^b what is left of the block after masking each cell with probability 1 - alpha_t, and

    CE_i = -log p_theta(x^i | x_t^b, x^{<b})   at a masked cell i,

the softmax being over the tokens possible there, the negative ELBO in continuous time is

    -log p(x) <= NELBO(x) = sum_b int_0^1 w(t) E_{x_t^b} sum_{masked i in b} CE_i dt
                          = sum_b E_{n ~ U{1..D_b}} E_{|m| = n} (D_b / n) sum_{i in m} CE_i,

with w(t) = -alpha'_t / (1 - alpha_t) and D_b the number of cells of the block.

All blocks of a row are scored in one forward pass over [x_t ; x_0]. Logits are computed at masked cells only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlm.modules.records import Likelihood
from xlm_bd3lm.streams_bd3lm import Streams
from xlm_bd3lm.types_bd3lm import NUM_LEVELS, BD3LMBatch, BD3LMLossOutput, BD3LMNetwork, score_tokens
from xlm_bd3lm.vocabulary_bd3lm import CellVocabulary


class BD3LMLoss:
    """sum over rows and blocks of a weight times the sum over masked cells of CE, normalised by all cells.

    loss_sum / loss_count is an estimate of the NELBO in nats per cell. The weights come with the batch, so
    one loss serves every kind of noise.

    Args:
        mask_id: Id of MASK, which has probability 0.
        pad_id: Id of PAD, possible only behind EOS.
        eos_id: Id of EOS, possible only where the text may end; None if no token ends a text and EOS, if
            there is one, is a token like any other.
        suppressed_ids: Further ids that never stand in a text and have probability 0. EOS and PAD among them
            stay possible where they may stand.
        flex_attention: Whether attention over rows of more than 128 cells is FlexAttention on a GPU, compiled
            for each shape; on a CPU, where it has no gradient, and by default it is computed in pieces.

    Raises:
        ValueError: If MASK is also PAD or EOS.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        flex_attention: bool = False,
    ) -> None:
        self._vocabulary = CellVocabulary(
            mask_id=mask_id, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._flex_attention = flex_attention

    def __call__(self, model: BD3LMNetwork, batch: BD3LMBatch) -> BD3LMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a masked token is impossible in its cell (on a device, the loss is infinite).
        """
        cells = self._masked_cells(model, batch)
        level, entropy = batch["masked_level"], cells.entropy
        by_level = level.new_zeros(NUM_LEVELS).index_add(0, level, torch.ones_like(level))
        return BD3LMLossOutput(
            loss_sum=cells.weighted_sum,
            loss_count=batch["num_eligible"].sum(),
            terms={"token": cells.weighted_sum},
            num_masked=batch["masked"].sum(),
            num_correct=cells.correct.sum(),
            masked_by_level=by_level,
            entropy_by_level=entropy.new_zeros(NUM_LEVELS).index_add(0, level, entropy),
        )

    def likelihood(self, model: BD3LMNetwork, batch: BD3LMBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x), or for blocks of one cell compute it.

        The model is one distribution, p(x) = prod_b E_s prod_k p_theta(x^s(k) | x^s(<k), x^{<b}) with s a
        uniformly random order of the cells of each block: that of the first-hitting sampler. Its NELBO, see
        above, is estimated without bias by batches of :class:`xlm_bd3lm.BD3LMLikelihoodCollator`; the mean
        over the draws of an example is the result.

        Raises:
            ValueError: If the batch is one for training, or a masked token is impossible in its cell.
        """
        if "num_draws" not in batch or "draw_of_row" not in batch or "is_exact" not in batch:
            raise ValueError(
                "a training batch has no likelihood: its noise may be that of a part of the levels. Use "
                "BD3LMLikelihoodCollator"
            )
        cells = self._masked_cells(model, batch)
        num_draws, draw_of_row = int(batch["num_draws"]), batch["draw_of_row"]
        draws = int(draw_of_row[-1]) + 1
        bound = batch["weight"].new_zeros(draws)
        bound = bound.index_add(0, draw_of_row[cells.row], batch["weight"] * cells.entropy)
        num_tokens = batch["num_tokens"].new_zeros(draws).index_add(0, draw_of_row, batch["num_tokens"])
        return Likelihood(
            nll=bound.view(-1, num_draws).mean(1),
            num_tokens=num_tokens[::num_draws],
            nll_kind="exact" if bool(batch["is_exact"]) else "bound",
            num_draws=num_draws,
            models_length=bool(batch["models_length"].all()),
        )

    def _masked_cells(self, model: BD3LMNetwork, batch: BD3LMBatch) -> "_MaskedCells":
        """The masked cells, and the sum over them of CE times their weight."""
        row, column = batch["masked_row"], batch["masked_column"]
        token = batch["target_ids"][row, column]
        may_end, may_pad = batch["may_end"][row, column], batch["may_pad"][row, column]
        segments = None
        if "cell_segments" in batch and "clean_segments" in batch:
            segments = batch["cell_segments"], batch["clean_segments"]
        streams = Streams.of(
            (batch["input_ids"], batch["cell_blocks"]),
            (batch["clean_ids"], batch["clean_blocks"]),
            batch["prompt_length"],
            segments=segments,
            spans=batch.get("spans", ()),
            flex=self._flex_attention and row.device.type != "cpu",
        )
        scores = score_tokens(
            model,
            streams.input_ids,
            streams.attention_mask,
            streams.position_ids,
            positions=streams.positions(row, column),
            targets=self._vocabulary.targets(token, batch["weight"], may_end, may_pad),
        )
        _check_possible(token, scores.log_probs)
        return _MaskedCells(
            weighted_sum=scores.loss, entropy=-scores.log_probs, row=row, correct=scores.best == token
        )


# Copied from xlm_mdlm.loss_mdlm._MaskedCells
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
