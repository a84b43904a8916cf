"""Prepared rows as examples: whole rows, packed blocks, or a seed alone.

Each is a map-style view whose keys hold the index of the row and its seed. Ids are read from the Arrow file
as int64 tensors, one batch at a time.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.data.arrow import Table, lengths_of, values_of
from xlm.core.data.encode import COLUMNS
from xlm.core.data.order import RowKey
from xlm.core.data.packing import Block, PackedDocuments
from xlm.core.protocols import Example


class Examples(Protocol):
    """Examples of a loader, by key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: RowKey, /) -> Example: ...

    def __getitems__(self, keys: Sequence[RowKey], /) -> list[Example]:
        """Examples of several keys (the data loader calls this once for a batch)."""
        ...


class PreparedRows(Dataset[Example]):
    """The rows of a prepared split.

    Args:
        rows: The prepared rows.
        columns: Columns of an example; None for all.

    Raises:
        XLMError: If the rows lack one of ``columns``.
    """

    def __init__(self, rows: datasets.Dataset, columns: Sequence[str] | None = None) -> None:
        if missing := set(columns or ()) - set(rows.column_names):
            raise XLMError(
                f"columns: the task has no {', '.join(sorted(missing))}, only {', '.join(rows.column_names)}"
            )
        chosen = COLUMNS if columns is None else columns
        self.columns = [name for name in COLUMNS if name in rows.column_names and name in chosen]
        self.rows = rows.select_columns(self.columns).with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    @override
    def __getitem__(self, key: RowKey) -> Example:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[RowKey]) -> list[Example]:
        """Examples of several keys."""
        return examples_of_table(cast("Table", self.rows[[key.row for key in keys]]), keys)

    def lengths(self, columns: Sequence[str] = ("prompt_ids", "target_ids")) -> np.ndarray:
        """(rows,) tokens of those of the columns that the rows have, together."""
        table = cast("Table", self.rows.data)
        total = np.zeros(len(self.rows), dtype=np.int64)
        for name in self.columns:
            if name in columns:
                total += lengths_of(table.column(name))
        return total


class PackedRows(Dataset[Example]):
    """The blocks of packed documents.

    Args:
        blocks: The documents.
        max_blocks: Only the first blocks; None for all.
        keep_apart: Whether examples have the document of each token (``segment_ids``).
    """

    def __init__(self, blocks: PackedDocuments, *, max_blocks: int | None, keep_apart: bool) -> None:
        self.blocks = blocks
        self.keep_apart = keep_apart
        self._length = len(blocks) if max_blocks is None else min(max_blocks, len(blocks))

    def __len__(self) -> int:
        return self._length

    @override
    def __getitem__(self, key: RowKey) -> Example:
        return example_of_block(self.blocks[key.row], key, keep_apart=self.keep_apart)

    def __getitems__(self, keys: Sequence[RowKey]) -> list[Example]:
        """Examples of several keys."""
        return [self[key] for key in keys]


class SeedRows(Dataset[Example]):
    """Examples without ids: each is one text to generate."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    @override
    def __getitem__(self, key: RowKey) -> Example:
        return {"seed": key.seed, "place": key.place}

    def __getitems__(self, keys: Sequence[RowKey]) -> list[Example]:
        """Examples of several keys."""
        return [self[key] for key in keys]


def examples_of_table(table: Table, keys: Sequence[RowKey]) -> list[Example]:
    """The rows of a table, one for each key."""
    tensors = {name: _split(table, name) for name in table.column_names}
    return [
        cast("Example", {"seed": key.seed, "place": key.place, **{n: rows[i] for n, rows in tensors.items()}})
        for i, key in enumerate(keys)
    ]


def example_of_block(block: Block, key: RowKey, *, keep_apart: bool) -> Example:
    """A block as an example."""
    example: Example = {"seed": key.seed, "place": key.place, "target_ids": torch.from_numpy(block.ids)}
    if keep_apart:
        example["segment_ids"] = torch.from_numpy(block.segments)
    return example


def _split(table: Table, name: str) -> Sequence[Tensor]:
    """The lists of a column as tensors that share one buffer."""
    lists = table.column(name).combine_chunks()
    values = values_of(lists).astype(np.bool_ if name == "fixed" else np.int64)
    return torch.from_numpy(values).split(lengths_of(lists).tolist())
