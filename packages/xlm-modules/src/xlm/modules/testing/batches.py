"""Batches as the suite changes them: with more padding, or without values."""

from collections.abc import Mapping
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Mapping[str, object])


def pad(batch: Batch, padding: Mapping[str, int], *, side: Literal["left", "right"]) -> Batch:
    """The batch with three more columns of padding in the tensors that are named."""
    padded = dict(batch)
    shape = next(tensor.shape for key in padding if isinstance(tensor := batch[key], Tensor))
    for key, value in padding.items():
        # A mask that is left out is True everywhere.
        tensor = torch.ones(shape, dtype=torch.bool) if batch[key] is None else cast("Tensor", batch[key])
        columns = tensor.new_full((len(tensor), 3), value)
        padded[key] = torch.cat((columns, tensor) if side == "left" else (tensor, columns), dim=1)
    return cast("Batch", padded)


def without_values(batch: Batch) -> Batch:
    """The batch on the meta device, whose tensors have shapes only."""
    moved = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast("Batch", moved)
