"""The training objective of the insertion language model and its likelihood bound.

A row z is what is left of a sequence x of L tokens after dropping N of them; c[k, v] counts the tokens v that
were dropped from slot k, so that their sum is N. With

    J[k, v] = log softmax of the token logits, jointly over all open slots k and allowed tokens v of the row

the terms of a row are (Patel et al. 2025, arXiv:2505.05755, section 3)

    token = -(1/N) sum_{k,v} c[k, v] J[k, v]      (0 if N = 0)
    stop  = -log P(stop | z) if N = 0, otherwise -log P(continue | z).

A row without an open slot (a target that is given whole) has no terms: it is complete, and the sampler does
not evaluate the network on it.

Logits are computed only at the open slots of rows with N > 0, and sums run over the list of dropped tokens:
there is no target tensor of shape (rows, length, vocab).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xlm.modules import (
    TokenScores,
    TokenTargets,
    at_least_float32,
    linear_cross_entropy,
    prompt_sees_target,
)
from xlm.modules.records import Likelihood
from xlm_ilm.types_ilm import ILMBatch, ILMLossOutput, ILMNetwork, call_model, prompt_of

RowWeight = Literal["one", "length_plus_one"]


class ILMLoss:
    """sum over rows of w (token + stop_weight * stop).

    Which row weight gives the distribution of the data. N is uniform on 0..L, so a row stands for 1/(L + 1)
    of its sequence. For data of one length both weights have the same minimiser, whose samples follow the
    data. For data of several lengths "one", the published objective, generates short sequences too often;
    "length_plus_one" does not: its expectation, with the other weights at 1, is the bound that
    :meth:`likelihood` estimates, plus log L!.

    Args:
        row_weight: w. "one", or "length_plus_one" for L + 1 with L the number of tokens that can be dropped.
        stop_weight: Weight of the stop term, at least 0.
        stop_class_weight: Weights the stop term by this number, in [0, 1], where N = 0 and by one minus it
            where N > 0. None for no weighting. Only for the stop head.
        suppressed_ids: Token ids that are never inserted and stay outside the softmax: exactly those of the
            predictor.
        head: What the network's head predicts: "stop", whether N > 0; or "length", N itself, with cross
            entropy as its term. Class 0 is N = 0 in both.

    Raises:
        ValueError: If an option is outside its range.
    """

    def __init__(
        self,
        *,
        row_weight: RowWeight = "one",
        stop_weight: float = 1.0,
        stop_class_weight: float | None = None,
        suppressed_ids: Sequence[int] = (),
        head: Literal["stop", "length"] = "stop",
    ) -> None:
        if row_weight not in ("one", "length_plus_one"):
            raise ValueError(f"row_weight must be 'one' or 'length_plus_one', got {row_weight!r}")
        if head not in ("stop", "length"):
            raise ValueError(f"head must be 'stop' or 'length', got {head!r}")
        if not 0 <= stop_weight < math.inf:
            raise ValueError(f"stop_weight must be at least 0, got {stop_weight}")
        if stop_class_weight is not None and (head == "length" or not 0 <= stop_class_weight <= 1):
            raise ValueError(
                f"stop_class_weight must be None or in [0, 1], and None with head='length', "
                f"got {stop_class_weight} with head={head!r}"
            )
        self._row_weight = row_weight
        self._stop_weight = stop_weight
        self._stop_class_weight = stop_class_weight
        self._suppressed_ids = list(suppressed_ids)
        self._head = head

    def __call__(self, model: ILMNetwork, batch: ILMBatch) -> ILMLossOutput:
        """Evaluate the network on a batch.

        Raises:
            ValueError: If a dropped token is among suppressed_ids, or N exceeds the length head (on a device
                the first makes the loss infinite, the second is an error of the device).
        """
        num_dropped = batch["num_dropped"]
        weight = self._row_weights(batch)
        scores, stop_logits = self._score(model, batch, weight)
        token_sum = scores.loss
        can_grow = batch["open_slots"].any(1)
        stop = torch.where(can_grow, self._stop_terms(stop_logits, num_dropped), 0.0)
        stop_sum = (weight * self._stop_weight * stop).sum()
        complete = (num_dropped == 0) & can_grow
        stop_probability = stop_logits.detach().softmax(-1)[:, 0]
        return ILMLossOutput(
            loss_sum=token_sum + stop_sum,
            loss_count=num_dropped.new_full((), len(num_dropped)),
            terms={"token": token_sum, "stop": stop_sum},
            num_dropped=num_dropped.sum(),
            num_complete=complete.sum(),
            num_incomplete=(num_dropped > 0).sum(),
            stop_at_complete=(stop_probability * complete).sum(),
            stop_at_incomplete=(stop_probability * (num_dropped > 0)).sum(),
        )

    def likelihood(self, model: ILMNetwork, batch: ILMBatch) -> Likelihood:
        """Estimate an upper bound of -log p(x), independent of the weights of the training loss.

        The chain that stops with P(stop | z) and otherwise inserts v into k with probability exp J[k, v] can
        write x in L! orders. Jensen's inequality with the uniform distribution over orders gives

            -log p(x) <= (L + 1) E_N E_z [token + stop] - log L!

        and the mean over the rows of an example estimates the expectation without bias. It holds for a
        predictor that draws to stop, has no filters and the same suppressed ids; for data of several lengths
        the minimum is reached under row_weight="length_plus_one". A length head stops with P(N = 0).
        """
        num_dropped, row = batch["num_dropped"], batch["target_row"]
        scores, stop_logits = self._score(model, batch, torch.ones_like(num_dropped))
        token = -scores.log_probs.new_zeros(len(num_dropped)).index_add(0, row, scores.log_probs)
        token = token / num_dropped.clamp(min=1)
        log_class = stop_logits.to(torch.float64).log_softmax(-1)
        complete = num_dropped == 0
        stop = -torch.where(complete, log_class[:, 0], log_class[:, 1:].logsumexp(-1))
        stop = torch.where(batch["open_slots"].any(1), stop, 0.0)
        size = batch["num_missing"].to(torch.float64)
        bound = (size + 1) * (token + stop) - torch.lgamma(size + 1)
        num_draws = int(batch["num_draws"])
        return Likelihood(
            nll=bound.view(-1, num_draws).mean(1),
            num_tokens=batch["num_missing"][::num_draws],
            nll_kind="bound",
            num_draws=num_draws,
            models_length=True,
        )

    def _score(self, model: ILMNetwork, batch: ILMBatch, weight: Tensor) -> tuple[TokenScores, Tensor]:
        """log J of the dropped tokens and the sum of weight (rows,) * token; stop logits (rows, classes)."""
        self._check_targets(batch["target_token"])
        row, column = batch["scored_row"], batch["scored_column"]
        cell_number = torch.empty_like(batch["input_ids"])
        cell_number[row, column] = torch.arange(len(row), device=row.device)
        targets = TokenTargets(
            token=batch["target_token"],
            weight=(weight / batch["num_dropped"].clamp(min=1).double())[batch["target_row"]],
            cell=cell_number[batch["target_row"], batch["target_slot"]],
            group_sizes=batch["num_scored"],
            suppressed_ids=self._suppressed_ids,
        )
        scores, stop_logits = call_model(
            model,
            partial(linear_cross_entropy, targets=targets),
            batch["input_ids"],
            batch["attention_mask"],
            positions=row * batch["input_ids"].shape[1] + column,
            **({} if prompt_sees_target(model) else {"prompt": prompt_of(batch)}),
        )
        return scores, at_least_float32(stop_logits)

    def _check_targets(self, target_token: Tensor) -> None:
        """Refuse dropped tokens of probability 0; on a device, the check would force a synchronisation."""
        if self._suppressed_ids and target_token.device.type == "cpu":
            clash = target_token[torch.isin(target_token, torch.tensor(self._suppressed_ids))]
            if len(clash) > 0:
                raise ValueError(
                    f"the targets hold token id {int(clash[0])}, which has probability 0 as one of "
                    "suppressed_ids"
                )

    def _stop_terms(self, stop_logits: Tensor, num_dropped: Tensor) -> Tensor:
        """(rows,) cross entropy of the stop head."""
        if self._head == "length":
            classes = stop_logits.shape[1]
            if num_dropped.device.type == "cpu" and (most := int(num_dropped.max())) >= classes:
                raise ValueError(f"a row misses {most} tokens, the length head has classes 0..{classes - 1}")
            return F.cross_entropy(stop_logits, num_dropped, reduction="none")
        label = (num_dropped > 0).long()
        entropy = F.cross_entropy(stop_logits, label, reduction="none")
        weight = self._stop_class_weight
        return (
            entropy if weight is None else torch.where(label == 0, weight * entropy, (1 - weight) * entropy)
        )

    def _row_weights(self, batch: ILMBatch) -> Tensor:
        """(rows,) weight of each row."""
        if self._row_weight == "one":
            return torch.ones_like(batch["num_missing"])
        return batch["num_missing"] + 1
