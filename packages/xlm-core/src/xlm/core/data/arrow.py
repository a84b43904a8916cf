"""Types for the part of Arrow that the data pipeline uses (pyarrow has none), and lists of ids as arrays."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Lists(Protocol):
    """A column of lists, in one piece."""

    def __len__(self) -> int: ...


class Column(Protocol):
    """A column of lists, in one or more pieces."""

    @property
    def chunks(self) -> Sequence[Lists]:
        """The pieces."""
        ...

    def combine_chunks(self) -> Lists:
        """The column in one piece."""
        ...


class Table(Protocol):
    """Rows, column by column."""

    def __len__(self) -> int: ...

    @property
    def num_columns(self) -> int:
        """Number of columns."""
        ...

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        ...

    def column(self, name: str, /) -> Column:
        """The column of this name."""
        ...

    def select(self, columns: Sequence[str], /) -> "Table":
        """The table with these columns only."""
        ...

    def slice(self, offset: int = 0, length: int | None = None) -> "Table":
        """Some rows, without copying."""
        ...


def make_table(columns: dict[str, Lists]) -> Table:
    """A table of columns of the same length."""
    return pa.table(columns)


def join_tables(tables: Sequence[Table]) -> Table:
    """Concatenate tables with the same columns, without copying."""
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def make_lists(lengths: np.ndarray, values: np.ndarray) -> Lists:
    """Lists of these lengths, concatenated in ``values``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def values_of(lists: Lists) -> np.ndarray:
    """All values of the lists, concatenated; a view if the type allows it."""
    return lists.flatten().to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]  # pyarrow has no types


def lengths_of(lists: Lists | Column) -> np.ndarray:
    """(lists,) int64 length of each."""
    return pc.call_function("list_value_length", [lists]).to_numpy(zero_copy_only=False).astype(np.int64)
