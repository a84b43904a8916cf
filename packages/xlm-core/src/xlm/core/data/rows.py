"""Prepared rows as examples: a batch is read from the Arrow table in one go, ids stay int64 arrays."""

from collections.abc import Sequence
from typing import cast

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xlm.core.data.order import RowKey
from xlm.core.protocols import Example

TENSOR_COLUMNS: dict[str, type[np.generic]] = {
    "prompt_ids": np.int64,
    "target_ids": np.int64,
    "fixed": np.bool_,
}


class PreparedRows(Dataset[Example]):
    """Map-style view of a prepared split; a key carries the row's index and its seed."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.columns = [name for name in TENSOR_COLUMNS if name in rows.column_names]
        self.rows = rows.select_columns(self.columns).with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: RowKey) -> Example:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[RowKey]) -> list[Example]:
        """Examples of several keys (the data loader calls this once for a batch)."""
        table = cast("pa.Table", self.rows[[key.row for key in keys]])
        tensors = {name: _split(table, name) for name in self.columns}
        return [
            cast(
                "Example",
                {"seed": key.seed, "place": key.place, **{name: tensors[name][i] for name in self.columns}},
            )
            for i, key in enumerate(keys)
        ]


def _split(table: pa.Table, name: str) -> Sequence[Tensor]:  # pyright: ignore[reportUnknownParameterType]  # pyarrow has no types
    """The lists of a column as tensors that share one buffer."""
    lists = table.column(name).combine_chunks()
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False).astype(TENSOR_COLUMNS[name])
    lengths: list[int] = np.diff(offsets).tolist()
    return torch.from_numpy(values[offsets[0] : offsets[-1]]).split(lengths)
