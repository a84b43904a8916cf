"""Inference: the missing tokens are filled one by one, in random order."""

import torch
from torch import Tensor, nn

from xlm.modules import sample_tokens, uniform
from xlm_skeleton.types_skeleton import SkeletonPrediction, SkeletonPromptBatch, SkeletonTrace, call_model

_STREAM_CELL = 0
_STREAM_TOKEN = 1


class SkeletonPredictor:
    """Fills one cell of each row per evaluation of the network.

    Args:
        pad_id: Id that fills the ids of a prediction beyond their lengths.
        temperature: Of the token's distribution; 1 has the law of the likelihood bound, 0 is greedy.

    Raises:
        ValueError: If the temperature is negative.
    """

    def __init__(self, *, pad_id: int, temperature: float = 1.0) -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        self._pad_id = pad_id
        self._temperature = temperature

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, batch: SkeletonPromptBatch, seeds: Tensor, *, trace: bool = False
    ) -> SkeletonPrediction:
        """Generate a target for each row.

        Args:
            model: The network, see :meth:`xlm_skeleton.Skeleton.forward`.
            batch: The given parts and masks, from :class:`xlm_skeleton.SkeletonPromptCollator`.
            seeds: (rows,) int64, the source of all draws.
            trace: Whether to record the edits.
        """
        ids, masked = batch["input_ids"].clone(), batch["masked"].clone()
        start, num_missing = batch["target_start"], masked.sum(1)
        target = batch["attention_mask"] & (_columns(ids) >= start.unsqueeze(1))
        row, column = target.nonzero(as_tuple=True)
        edits = [_edits(0, row, 0, column - start[row], ids[row, column])]
        for step in range(1, int(num_missing.max()) + 1):
            row = (num_missing >= step).nonzero().squeeze(1)
            keys = uniform(seeds[row], ids.shape[1], step=step, stream=_STREAM_CELL)
            column = keys.masked_fill(~masked[row], -1).argmax(1)
            cells = torch.arange(len(row), device=row.device) * ids.shape[1] + column
            logits = call_model(model, ids[row], batch["attention_mask"][row], positions=cells)
            number = uniform(seeds[row], 1, step=step, stream=_STREAM_TOKEN).squeeze(1)
            token = sample_tokens(logits, number, temperature=self._temperature)
            ids[row, column], masked[row, column] = token, False
            edits.append(_edits(step, row, 1, column - start[row], token))
        lengths = target.sum(1)
        texts = ids.new_full((len(ids), int(lengths.max())), self._pad_id)
        row, column = target.nonzero(as_tuple=True)
        texts[row, column - start[row]] = ids[row, column]
        made = SkeletonTrace(*torch.cat(edits, dim=1)) if trace else None
        return SkeletonPrediction(ids=texts, lengths=lengths, nfe=num_missing, trace=made)


def _columns(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device)


def _edits(step: int, row: Tensor, operation: int, position: Tensor, token: Tensor) -> Tensor:
    """(5, edits) the fields of :class:`SkeletonTrace`, in their order, for edits of one step."""
    return torch.stack([torch.full_like(row, step), row, torch.full_like(row, operation), position, token])
