"""The training objective of the autoregressive language model and its likelihood.

With a row x_1 ... x_n, the prompt and BOS before the first target token x_s and EOS as x_n, the loss is

    sum_{i=s}^{n} -log p(x_i | x_1, ..., x_{i-1}),

and its normaliser the number of predicted tokens. Nothing is predicted from padding, and padding is never
predicted. The network's head is computed at the predicted tokens only.
"""

import torch
from torch import Tensor, nn

from xlm.modules import segment_mask
from xlm_arlm.types_arlm import ARLMBatch, ARLMLikelihood, ARLMLossOutput, call_model


class ARLMLoss:
    """Cross entropy of the next token, summed over the target tokens that are not fixed and EOS.

    Args:
        loss_on_prompt: Whether the given tokens are predicted as well, each from those on its left: the
            prompt but its first token, which has nothing on its left, BOS and the fixed tokens of the target.
    """

    def __init__(self, *, loss_on_prompt: bool = False) -> None:
        self._loss_on_prompt = loss_on_prompt

    def __call__(self, model: nn.Module, batch: ARLMBatch) -> ARLMLossOutput:
        """Evaluate the network on a batch."""
        neighbours = _neighbours(batch)
        in_target = neighbours & batch["target_mask"][:, 1:]
        cells = _indices(neighbours if self._loss_on_prompt else in_target)
        entropy = _next_token_entropy(model, batch, cells)
        target_sum = entropy[in_target.flatten()[cells]].sum()
        terms = {"target": target_sum}
        if self._loss_on_prompt:
            terms["prompt"] = entropy.sum() - target_sum
        return ARLMLossOutput(
            loss_sum=entropy.sum(),
            loss_count=torch.tensor(len(cells), device=entropy.device),
            terms=terms,
            num_target=in_target.sum(),
        )

    def likelihood(self, model: nn.Module, batch: ARLMBatch) -> ARLMLikelihood:
        """-log p(target, EOS | prompt) of each row, whether the prompt is in the training loss or not.

        The sum of exp(-nll) over all targets is 1. Without EOS this holds for the targets of each length: the
        length is given, not scored. The nll of a packed block is the sum over its documents, of each given
        its first token. The law is that of the whole vocabulary: a predictor that suppresses ids, as it
        should, draws from this law given that none of them comes.
        """
        in_target = _neighbours(batch) & batch["target_mask"][:, 1:]
        cells = _indices(in_target)
        entropy = _next_token_entropy(model, batch, cells).to(torch.float64)
        nll = entropy.new_zeros(len(in_target)).index_add(0, cells // in_target.shape[1], entropy)
        return ARLMLikelihood(
            nll=nll, num_tokens=batch["num_tokens"], models_length=bool(batch["models_length"].all())
        )


def _neighbours(batch: ARLMBatch) -> Tensor:
    """(rows, length - 1) True where a token and the next one are real, and of the same text."""
    if "segment_ids" in batch:
        segments = batch["segment_ids"]
        return (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] >= 0)
    mask = batch["attention_mask"]
    if mask is None:
        return torch.ones_like(batch["input_ids"][:, 1:], dtype=torch.bool)
    return mask[:, :-1] & mask[:, 1:]


def _indices(wanted: Tensor) -> Tensor:
    """(cells,) where ``wanted`` is True, as indices into all of its entries."""
    return wanted.flatten().nonzero().squeeze(1)


def _next_token_entropy(model: nn.Module, batch: ARLMBatch, cells: Tensor) -> Tensor:
    """(cells,) -log p of the token right of each cell; the last column has none and is left out."""
    targets = batch["input_ids"][:, 1:].flatten()[cells]
    return call_model(
        model,
        batch["input_ids"][:, :-1],
        _mask_of_inputs(batch),
        positions=cells,
        targets=targets,
    )


def _mask_of_inputs(batch: ARLMBatch) -> Tensor | None:
    """The mask without the last column; None if padding stands on the right only.

    A causal network does not see it there anyway, and without a mask it uses faster kernels.
    """
    if "segment_ids" in batch:
        return segment_mask(batch["segment_ids"][:, :-1])
    mask = batch["attention_mask"]
    if mask is None or bool((mask[:, :-1] >= mask[:, 1:]).all()):
        return None
    return mask[:, :-1]
