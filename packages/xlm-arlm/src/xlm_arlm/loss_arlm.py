"""The training objective of the autoregressive language model and its likelihood.

With a row x_1 ... x_n, the prompt and BOS before the first target token x_s and EOS as x_n, the loss is

    sum_{i=s}^{n} -log p(x_i | x_1, ..., x_{i-1}),

and its normaliser the number of predicted tokens. Nothing is predicted from padding, and padding is never
predicted. The network's head is computed at the predicted tokens only.
"""

import torch
from torch import Tensor

from xlm.modules import TokenScores, segment_mask
from xlm.modules.records import Likelihood
from xlm_arlm.types_arlm import (
    ARLMBatch,
    ARLMLossOutput,
    ARLMNetwork,
    ARLMPrefixLikelihood,
    score_tokens,
)


class ARLMLoss:
    """Cross entropy of the next token, summed over the target tokens that are not fixed and EOS.

    Args:
        loss_on_prompt: Whether the given tokens are predicted as well, each from those on its left: the
            prompt but its first token, which has nothing on its left, BOS and the fixed tokens of the target.
    """

    def __init__(self, *, loss_on_prompt: bool = False) -> None:
        self._loss_on_prompt = loss_on_prompt

    def __call__(self, model: ARLMNetwork, batch: ARLMBatch) -> ARLMLossOutput:
        """Evaluate the network on a batch."""
        row, column = batch["target_row"], batch["target_column"]
        num_target = len(row)
        if self._loss_on_prompt:
            row = torch.cat((row, batch["given_row"]))
            column = torch.cat((column, batch["given_column"]))
        scores = _scores(model, batch, row, column)
        terms = {"target": -scores.log_probs[:num_target].sum()}
        if self._loss_on_prompt:
            terms["prompt"] = -scores.log_probs[num_target:].sum()
        return ARLMLossOutput(
            loss_sum=scores.loss,
            loss_count=row.new_full((), len(row)),
            terms=terms,
            num_target=row.new_full((), num_target),
        )

    def likelihood(self, model: ARLMNetwork, batch: ARLMBatch) -> Likelihood:
        """-log p(target, EOS | prompt) of each row, whether the prompt is in the training loss or not.

        The sum of exp(-nll) over all targets is 1. Without EOS this holds for the targets of each length: the
        length is given, not scored. The nll of a packed block is the sum over its documents, of each given
        its first token. The distribution is that of the whole vocabulary: a predictor that suppresses ids, as
        it should, draws from this distribution given that none of them comes.
        """
        row = batch["target_row"]
        entropy = -_scores(model, batch, row, batch["target_column"]).log_probs.to(torch.float64)
        nll = entropy.new_zeros(len(batch["input_ids"])).index_add(0, row, entropy)
        return Likelihood(
            nll=nll,
            num_tokens=batch["num_tokens"],
            nll_kind="exact",
            num_draws=1,
            models_length=bool(batch["models_length"].all()),
        )

    def prefix_likelihood(self, model: ARLMNetwork, batch: ARLMBatch) -> ARLMPrefixLikelihood:
        """-log p(the text begins with the target | prompt) of each row; EOS is not scored."""
        row, column = batch["target_row"], batch["target_column"]
        scores = _scores(model, batch, row, column, wants_best=True)
        assert scores.best is not None
        is_last = torch.ones_like(row, dtype=torch.bool)
        is_last[:-1] = row[1:] != row[:-1]
        counts = ~(is_last & batch["models_length"][row])  # all but EOS
        nats = torch.where(counts, -scores.log_probs.to(torch.float64), 0.0)
        misses = counts & (scores.best != batch["input_ids"][row, column])
        zeros = nats.new_zeros(len(batch["input_ids"]))
        return ARLMPrefixLikelihood(
            nll=zeros.index_add(0, row, nats),
            num_tokens=batch["num_tokens"],
            nll_kind="exact",
            num_draws=1,
            models_length=False,
            is_greedy=zeros.index_add(0, row, misses.double()) == 0,
        )


def _scores(
    model: ARLMNetwork, batch: ARLMBatch, row: Tensor, column: Tensor, *, wants_best: bool = False
) -> TokenScores:
    """-log p of the tokens in some places, each given those on its left."""
    # The last column has no token on its right and is left out.
    width = batch["input_ids"].shape[1] - 1
    return score_tokens(
        model,
        batch["input_ids"][:, :-1],
        _mask_of_inputs(batch),
        positions=row * width + column - 1,
        tokens=batch["input_ids"][row, column],
        wants_best=wants_best,
    )


def _mask_of_inputs(batch: ARLMBatch) -> Tensor | None:
    """Who sees whom, without the last column; None for the network's own causal mask, which is faster."""
    if "segment_ids" in batch:
        return segment_mask(batch["segment_ids"][:, :-1])
    mask = batch["attention_mask"]
    return None if mask is None else mask[:, :-1]
