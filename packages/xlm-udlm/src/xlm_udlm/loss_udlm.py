"""The training objective of uniform-state diffusion and its likelihood bound.

With x_0 a row of L free cells, x_t what the noise made of it, and F_i the integrand at cell i
(:mod:`xlm_udlm.nelbo_udlm`), the negative ELBO in continuous time is (Schiff et al. 2024, arXiv:2412.10193)

    -log p(x_0) <= NELBO(x_0) = int_0^1 w(t) E_{x_t} sum_i F_i / K_i dt,      w(t) = -alpha'_t / alpha_t.

*All* free cells contribute, noised or not: which cells are noise is not visible. F depends on the
probabilities of all K tokens; the logits go through one buffer in pieces, and each piece leaves its gradient
behind.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from xlm.modules import linear_cell_loss, require, segment_mask
from xlm.modules.records import Likelihood
from xlm_udlm.cross_entropy_udlm import DenoiserCrossEntropy
from xlm_udlm.nelbo_udlm import LEAST_NOISE, UniformNELBO
from xlm_udlm.posterior_udlm import own_token_bonus
from xlm_udlm.types_udlm import NUM_LEVELS, Output, UDLMBatch, UDLMLossOutput, UDLMNetwork, read_cells
from xlm_udlm.vocabulary_udlm import CellVocabulary


class UDLMLoss:
    """sum over rows of w(t) sum over free cells of F / K, normalised by the free cells.

    loss_sum / loss_count is an estimate of the NELBO in nats per cell. The weights come with the batch, so
    one loss serves every noise schedule and every density of times.

    Args:
        vocab_size: Number of ids, that of the network's logits.
        pad_id: Id of PAD, possible only where the text may end.
        eos_id: Id of EOS, possible only where the text may end; None if no token ends a text and EOS, if
            there is one, is a token like any other.
        suppressed_ids: Further ids that never stand in a text and have probability 0, such as MASK and BOS.
            EOS and PAD among them stay possible where the text may end.
        output: What the network's logits are: "leave_one_out", the prediction of a cell from the other cells,
            which training by this loss leads to; or "denoiser", the prediction from all cells, which is
            converted. See :mod:`xlm_udlm.posterior_udlm`.
        objective: Of training; the likelihood is always the bound. "bound"; or "cross_entropy", that of the
            denoiser at each free cell without weights (:mod:`xlm_udlm.cross_entropy_udlm`): the same optimum,
            but ``loss_sum`` is no bound. It learns from cells at which nearly everything is noise, which
            weigh nothing in the bound.

    Raises:
        ValueError: If an id is not of the vocabulary, no token is possible in a text, or ``output`` or
            ``objective`` is another word.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int,
        eos_id: int | None,
        suppressed_ids: Sequence[int] = (),
        output: Output = "leave_one_out",
        objective: Literal["bound", "cross_entropy"] = "bound",
    ) -> None:
        check_output(output)
        allowed = "'bound' or 'cross_entropy'"
        require(objective in ("bound", "cross_entropy"), "objective", objective, allowed)
        self._vocabulary = CellVocabulary(
            vocab_size=vocab_size, pad_id=pad_id, eos_id=eos_id, suppressed_ids=suppressed_ids
        )
        self._output: Output = output
        self._objective = objective

    def __call__(self, model: UDLMNetwork, batch: UDLMBatch) -> UDLMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If the logits are those of another vocabulary.
        """
        scored, losses, _ = self._evaluate(model, batch, self._objective)
        row = batch["cell_row"]
        # The interval of 1 - alpha in (0, 1] among NUM_LEVELS equal ones, closed on the right.
        level = (batch["one_minus_alpha"] * NUM_LEVELS).ceil().long().clamp(1, NUM_LEVELS)[row] - 1
        target = batch["target_ids"][row, batch["cell_column"]]
        noised = batch["input_ids"][row, batch["cell_column"]] != target
        entropy = -scored.log_prob
        return UDLMLossOutput(
            loss_sum=losses,
            loss_count=batch["num_free"].sum(),
            terms={"token": losses},
            num_noised=noised.sum(),
            num_correct=(scored.best == target).sum(),
            cells_by_level=level.new_zeros(NUM_LEVELS).index_add(0, level, torch.ones_like(level)),
            entropy_by_level=entropy.new_zeros(NUM_LEVELS).index_add(0, level, entropy),
        )

    def likelihood(self, model: UDLMNetwork, batch: UDLMBatch) -> Likelihood:
        """Estimate the NELBO, an upper bound of -log p(x_0), over all times and without a cut at their ends.

        In the variable alpha no schedule is left: NELBO(x_0) = int_0^1 E sum_i F_i / (K_i alpha) d alpha.
        :class:`xlm_udlm.UDLMLikelihoodCollator` draws 1 - alpha = s^3; the mean over the rows of an example
        is the result. As alpha runs from 1 to 0, neither a reconstruction nor a prior term is missing.

        Raises:
            ValueError: If the batch is one for training, or the logits are those of another vocabulary.
        """
        if "num_draws" not in batch:
            raise ValueError(
                "a training batch has no likelihood: its times follow the training schedule. Use "
                "UDLMLikelihoodCollator"
            )
        _, _, of_cells = self._evaluate(model, batch, "bound")
        bound = torch.zeros_like(batch["weight"]).index_add(0, batch["cell_row"], of_cells)
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=bound.view(-1, num_draws).mean(1),
            num_tokens=batch["num_tokens"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=bool(batch["models_length"].all()),
        )

    def _evaluate(
        self, model: UDLMNetwork, batch: UDLMBatch, objective: str
    ) -> tuple[UniformNELBO | DenoiserCrossEntropy, Tensor, Tensor]:
        """The scored cells, the sum of their losses, which has a gradient, and each loss (cells,)."""
        row, column = batch["cell_row"], batch["cell_column"]
        may_end, u = batch["may_end"][row, column], batch["one_minus_alpha"][row]
        own, target = batch["input_ids"][row, column], batch["target_ids"][row, column]
        # Of the alpha that the network is conditioned on, which near t = 1 may exceed the true one.
        known = u.where(u < 0.5, -torch.expm1(-batch["noise"][row])).clamp(min=LEAST_NOISE)
        bonus = own_token_bonus(known, self._vocabulary.num_possible(may_end))
        is_denoiser = self._output == "denoiser"
        if objective == "bound":
            scored = UniformNELBO(
                self._vocabulary,
                own=own,
                target=target,
                one_minus_alpha=u,
                weight=batch["weight"][row],
                may_end=may_end,
                own_bonus=bonus if is_denoiser else None,
            )
        else:
            scored = DenoiserCrossEntropy(
                self._vocabulary,
                own=own,
                target=target,
                may_end=may_end,
                own_bonus=bonus,
                is_denoiser=is_denoiser,
            )
        more: dict[str, Tensor] = {}
        if "blend_ids" in batch and "blend_weights" in batch:
            more = {"blend_ids": batch["blend_ids"], "blend_weights": batch["blend_weights"]}
        mask = segment_mask(batch["segment_ids"]) if "segment_ids" in batch else batch["attention_mask"]
        found = read_cells(
            model,
            partial(linear_cell_loss, cell_loss=scored),
            batch["input_ids"],
            mask,
            batch["noise"],
            positions=row * batch["input_ids"].shape[1] + column,
            **more,
        )
        return scored, found.loss, found.of_cells


def check_output(output: str) -> None:
    """Refuse what is no :data:`xlm_udlm.types_udlm.Output`.

    Raises:
        ValueError: If it is another word.
    """
    require(output in ("leave_one_out", "denoiser"), "output", output, "'leave_one_out' or 'denoiser'")
