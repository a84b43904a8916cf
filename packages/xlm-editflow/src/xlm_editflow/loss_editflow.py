"""The training objective of edit flows, which is their likelihood bound.

A source x0 and a target x1 are aligned; each of the D edits between them remains to be made with probability
u, and x is the text in which the others have been made. In the clock du / u an edit a happens at the rate
s_a(x, u) (:mod:`xlm_editflow.rates_editflow`). With r the number of edits that remain, the bound of x1
(Havasi et al. 2025, arXiv:2506.09018, section 3; with its constants) is

    integral over (0, 1) of du / u E_x [ sum over all a of s_a - r - sum over those that remain of log s_a ]
        >= -log p(x1),

if x0 is drawn from the source's distribution, whatever x1 is, or depends on the prompt alone. It holds for
all rates and every alignment: the paths that make the labelled edits in some order, and no others, are some
of the paths of the process to x1. It stays loose where the process takes detours.

The integral is split exactly over r ~ U{0..D}, which bounds the weight of a row. With the u of
:class:`xlm_editflow.EditFlowCollator`, and the rate of an edit as that of its operation times the probability
of its token, the terms of a row are

    operation = (D + 1) / r * (sum of s - r - sum of log s of the operations that remain)
    token     = -(D + 1) / r * sum of log p of the tokens to insert or to substitute by

and, for r = 0, operation = sum of s / u and token = 0.

The sum of the rates needs no token logits, as the probabilities of a slot's tokens, and of those that
substitute one, add up to 1. So logits are computed only where a token remains to be written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from xlm.modules import check_vocabulary, linear_cell_loss, prompt_sees_target
from xlm.modules.cell_loss import CellLosses
from xlm.modules.records import Likelihood
from xlm_editflow.rates_editflow import Rates
from xlm_editflow.types_editflow import (
    EditFlowBatch,
    EditFlowLossOutput,
    EditFlowNetwork,
    call_model,
    prompt_of,
)


class EditFlowLoss:
    """sum over rows of operation + token, in nats per text: an unbiased estimate of the bound.

    Its minimiser turns the source's distribution into that of the data, whatever the lengths of its texts.

    Args:
        suppressed_ids: Token ids that are never written and stay outside the softmax: exactly those of the
            predictor.
    """

    def __init__(self, *, suppressed_ids: Sequence[int] = ()) -> None:
        self._suppressed_ids = list(suppressed_ids)

    def __call__(self, model: EditFlowNetwork, batch: EditFlowBatch) -> EditFlowLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a token to write is among suppressed_ids (on a device the loss is infinite then).
        """
        tokens, operation, total = self._score(model, batch)
        finished = batch["num_remaining"] == 0
        operation_sum, of_rows = operation.sum(), total.detach()
        return EditFlowLossOutput(
            loss_sum=tokens.loss + operation_sum,
            loss_count=finished.new_full((), len(finished), dtype=torch.int64),
            terms={"token": tokens.loss, "operation": operation_sum},
            num_remaining=batch["num_remaining"].sum(),
            num_finished=finished.sum(),
            rate_at_finished=(of_rows * finished).sum(),
            rate_at_unfinished=(of_rows * ~finished).sum(),
        )

    def likelihood(self, model: EditFlowNetwork, batch: EditFlowBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x), p being the distribution of the process.

        The mean of the row losses of each example's draws, which the collator stratifies over r.

        Raises:
            ValueError: If the source was drawn from the target.
        """
        if not batch["source_is_independent"]:
            raise ValueError(
                "a source that is drawn from the target, such as Corrupted, has no likelihood of the text: "
                "use another source, or no likelihood (datamodule.val.lm.uses=[loss], "
                "datamodule.test.lm.uses=[loss])"
            )
        tokens, operation, _ = self._score(model, batch)
        row = torch.cat((batch["insert_row"], batch["substitute_row"]))
        nll = operation.index_add(0, row, tokens.of_cells)
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=nll.view(-1, num_draws).mean(1),
            num_tokens=batch["num_missing"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=True,
        )

    def _score(self, model: EditFlowNetwork, batch: EditFlowBatch) -> tuple[CellLosses, Tensor, Tensor]:
        """Token terms of the cells, operation terms (rows,), and the sums of the rates (rows,)."""
        self._check_targets(batch["target_token"])
        weight = (batch["num_edits"] + 1) / batch["num_remaining"].clamp(min=1).double()
        own = batch["input_ids"][batch["substitute_row"], batch["substitute_column"]]
        scoring = _TokenLoss(
            token=batch["target_token"],
            weight=weight[batch["target_row"]],
            cell=batch["target_cell"],
            own=torch.cat((torch.full_like(batch["insert_row"], -1), own)),
            suppressed_ids=self._suppressed_ids,
        )
        length = batch["input_ids"].shape[1]
        tokens, operation_logits = call_model(
            model,
            partial(_read, scoring=scoring),
            batch["input_ids"],
            batch["attention_mask"],
            time=batch["time"],
            insert_at=batch["insert_row"] * length + batch["insert_column"],
            substitute_at=batch["substitute_row"] * length + batch["substitute_column"],
            **({} if prompt_sees_target(model) else {"prompt": prompt_of(batch)}),
        )
        rates = Rates.of(operation_logits, batch["time"].log())
        total = rates.total(batch["open_slots"], batch["editable"])
        log_rates = torch.stack((rates.log_insert, rates.log_delete, rates.log_substitute), -1)
        row = batch["target_row"]
        written = log_rates[row, batch["target_column"], batch["target_operation"]]
        deleted = rates.log_delete[batch["delete_row"], batch["delete_column"]]
        log_sum = torch.zeros_like(total).index_add(0, row, written)
        log_sum = log_sum.index_add(0, batch["delete_row"], deleted)
        remain = batch["num_remaining"]
        operation = torch.where(remain > 0, weight * (total - remain - log_sum), total / batch["time"])
        return tokens, operation, total

    def _check_targets(self, target_token: Tensor) -> None:
        """Refuse tokens of probability 0; on a device, the check would force a synchronisation."""
        if self._suppressed_ids and target_token.device.type == "cpu":
            clash = target_token[torch.isin(target_token, torch.tensor(self._suppressed_ids))]
            if len(clash) > 0:
                raise ValueError(
                    f"the targets hold token id {int(clash[0])}, which has probability 0 as one of "
                    "suppressed_ids"
                )


def _read(hidden: Tensor, head: nn.Module, *, scoring: "_TokenLoss") -> CellLosses:
    """The readout."""
    return linear_cell_loss(hidden, head, scoring)


@dataclass(frozen=True)
class _TokenLoss:
    """weight * -log p of the tokens to write, p being a softmax in each cell."""

    token: Tensor
    """(targets,)"""
    weight: Tensor
    """(targets,)"""
    cell: Tensor
    """(targets,) the cell of each."""
    own: Tensor
    """(cells,) token that is there and not possible; -1: none, an insertion."""
    suppressed_ids: list[int] = field(default_factory=list[int])

    def __call__(self, logits: Tensor, cells: slice, /, *, differentiates: bool) -> Tensor:
        """Losses of some cells."""
        check_vocabulary(self.token, logits.shape[1])
        for token in self.suppressed_ids:
            logits.select(1, token).fill_(-torch.inf)
        own = self.own[cells].unsqueeze(1)
        place = own.clamp(min=0)
        logits.scatter_(1, place, logits.gather(1, place).masked_fill(own >= 0, -torch.inf))
        log_total = logits.logsumexp(1, keepdim=True)
        # Which targets belong to these cells is not read from the device: all are looked up, and those of
        # other cells are left out.
        here = (self.cell >= cells.start) & (self.cell < cells.stop)
        cell = (self.cell - cells.start).clamp(0, len(logits) - 1)
        weight = torch.where(here, self.weight, 0.0)
        score = logits[cell, self.token] - log_total[cell, 0]
        losses = weight.new_zeros(len(logits))
        losses.index_add_(0, cell, torch.where(here, -weight * score, 0.0))
        if differentiates:
            mass = weight.new_zeros(len(logits)).index_add_(0, cell, weight)
            logits.sub_(log_total).exp_().mul_(mass.unsqueeze(1))
            logits.index_put_((cell, self.token), -weight.to(logits.dtype), accumulate=True)
        return losses
