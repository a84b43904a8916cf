"""The training objective of insertion by reversed deletion, which is its likelihood bound.

A text x of L tokens loses each with probability u; y is the rest, n the number lost. In the clock du / u a
token v appears in slot k of y at the rate s[k, v] = nhat(y, u) exp J[k, v], with

    nhat = sum_n n A_n u^n / sum_n A_n u^n                       (the expected number of missing tokens)
    J[k, v] = log softmax of the token logits at u, jointly over all open slots k and allowed tokens v.

The bound of x (Ding et al. 2026, arXiv:2603.23507; here in a form with labelled deletions) is

    integral over (0, 1) of du / u E_y [ nhat - n - sum of log s[slot, token] over the deleted tokens ]
        >= -log p(x),

which holds for every text and every s: each sequence of labelled deletions is one sequence of insertions, so
the numbers of embeddings of y in x, with which the published loss weighs its terms, are not needed. The
integral is split exactly over n ~ U{0..L}: the weight of a row is then bounded (u ~ U(0, 1) with the weight
1 / u has a variance that diverges). With the u of :class:`xlm_did.DIDCollator` the terms of a row are

    token  = -(L + 1) / n * sum of J[slot, token]                (0 if n = 0)
    length = (L + 1) / n * (nhat - n log nhat - n)               (nhat / u if n = 0).

A row without an open slot, or of the longest length, has no terms: it is complete, and the sampler does not
evaluate the network on it.

Logits are computed only at the open slots of rows with n > 0, and sums run over the list of deleted tokens:
there is no target tensor of shape (rows, length, vocab).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from xlm.modules import TokenScores, TokenTargets, linear_cross_entropy, prompt_sees_target
from xlm.modules.records import Likelihood
from xlm_did.missing_did import log_expected, log_none_missing, log_numbers
from xlm_did.types_did import DIDBatch, DIDLossOutput, DIDNetwork, call_model, prompt_of


class DIDLoss:
    """sum over rows of token + length, in nats per text: an unbiased estimate of the bound.

    Its minimiser generates the distribution of the data, whatever the lengths of its texts.

    Args:
        suppressed_ids: Token ids that are never inserted and stay outside the softmax: exactly those of the
            predictor.
    """

    def __init__(self, *, suppressed_ids: Sequence[int] = ()) -> None:
        self._suppressed_ids = list(suppressed_ids)

    def __call__(self, model: DIDNetwork, batch: DIDBatch) -> DIDLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a deleted token is among suppressed_ids, or n exceeds what the length head has (on
                a device the loss is infinite then).
        """
        scores, lengths = self._score(model, batch)
        token_sum, length_sum = scores.loss, lengths.terms.sum()
        num_dropped = batch["num_dropped"]
        complete = (num_dropped == 0) & lengths.can_grow
        incomplete = num_dropped > 0
        return DIDLossOutput(
            loss_sum=token_sum + length_sum,
            loss_count=num_dropped.new_full((), len(num_dropped)),
            terms={"token": token_sum, "length": length_sum},
            num_dropped=num_dropped.sum(),
            num_complete=complete.sum(),
            num_incomplete=incomplete.sum(),
            chance_at_complete=(lengths.chance * complete).sum(),
            chance_at_incomplete=(lengths.chance * incomplete).sum(),
        )

    def likelihood(self, model: DIDNetwork, batch: DIDBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x), p being the distribution of the first-hitting sampler.

        The mean of the row losses of each example's draws, which the collator stratifies over n. The sampler
        is the one without temperature and filters, with the same suppressed ids.
        """
        scores, lengths = self._score(model, batch)
        weight = _row_weights(batch)[batch["target_row"]]
        nll = lengths.terms.index_add(0, batch["target_row"], -weight * scores.log_probs.to(weight.dtype))
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=nll.view(-1, num_draws).mean(1),
            num_tokens=batch["num_missing"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=True,
        )

    def _score(self, model: DIDNetwork, batch: DIDBatch) -> tuple[TokenScores, "_Lengths"]:
        """log J of the deleted tokens with the sum of the token terms; the length terms."""
        self._check_targets(batch["target_token"])
        row, column = batch["scored_row"], batch["scored_column"]
        cell_number = torch.empty_like(batch["input_ids"])
        cell_number[row, column] = torch.arange(len(row), device=row.device)
        targets = TokenTargets(
            token=batch["target_token"],
            weight=_row_weights(batch)[batch["target_row"]],
            cell=cell_number[batch["target_row"], batch["target_slot"]],
            group_sizes=batch["num_scored"],
            suppressed_ids=self._suppressed_ids,
        )
        scores, length_logits = call_model(
            model,
            partial(linear_cross_entropy, targets=targets),
            batch["input_ids"],
            batch["attention_mask"],
            time=batch["time"],
            positions=row * batch["input_ids"].shape[1] + column,
            **({} if prompt_sees_target(model) else {"prompt": prompt_of(batch)}),
        )
        return scores, _Lengths.of(length_logits, batch)

    # Copied from xlm_ilm.loss_ilm.ILMLoss._check_targets
    def _check_targets(self, target_token: Tensor) -> None:
        """Refuse deleted tokens of probability 0; on a device, the check would force a synchronisation."""
        if self._suppressed_ids and target_token.device.type == "cpu":
            clash = target_token[torch.isin(target_token, torch.tensor(self._suppressed_ids))]
            if len(clash) > 0:
                raise ValueError(
                    f"the targets hold token id {int(clash[0])}, which has probability 0 as one of "
                    "suppressed_ids"
                )


@dataclass(frozen=True)
class _Lengths:
    """What the length head gives for each row."""

    terms: Tensor
    """(rows,) length terms, float64."""
    chance: Tensor
    """(rows,) P(nothing is missing), without gradient."""
    can_grow: Tensor
    """(rows,) whether anything may be missing."""

    @staticmethod
    def of(length_logits: Tensor, batch: DIDBatch) -> "_Lengths":
        """The terms of a batch.

        Raises:
            ValueError: If n exceeds what the head has.
        """
        num_dropped, log_time = batch["num_dropped"], batch["time"].log()
        most = length_logits.shape[1] - 1
        if num_dropped.device.type == "cpu" and (found := int(num_dropped.max())) > most:
            raise ValueError(f"a row misses {found} tokens, the length head has 0..{most}: raise max_missing")
        can_grow = batch["open_slots"].any(1) & (batch["most_missing"] > 0)
        # With 1 at least everything is finite, also in rows without terms.
        num_kept = batch["num_missing"] - num_dropped
        log_a = log_numbers(length_logits, num_kept, batch["most_missing"].clamp(min=1))
        log_nhat = log_expected(log_a, log_time)
        divergence = log_nhat.exp() - num_dropped * log_nhat - num_dropped
        complete = (log_nhat - log_time).exp()
        terms = torch.where(num_dropped > 0, _row_weights(batch) * divergence, complete)
        return _Lengths(
            terms=torch.where(can_grow, terms, 0.0),
            chance=log_none_missing(log_a, log_time).exp().detach(),
            can_grow=can_grow,
        )


def _row_weights(batch: DIDBatch) -> Tensor:
    """(rows,) (L + 1) / n, L + 1 where n = 0."""
    return (batch["num_missing"] + 1) / batch["num_dropped"].clamp(min=1).double()
