"""Documents concatenated into blocks of equal length: by index for prepared rows, in order for a stream.

The documents of a split, each followed by a separator, form one long text; block k is its k-th piece. Every
token occurs exactly once: the last block is shorter. Separators are inserted only here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import datasets
import numpy as np

from xlm.core.config.schema import PackingSettings
from xlm.core.data.arrow import Lists, Table, lengths_of, values_of


class Block(NamedTuple):
    """A piece of the concatenated documents."""

    ids: np.ndarray
    """(block,) int64"""
    segments: np.ndarray
    """(block,) int64 number of the document in this block that each token belongs to."""


@dataclass(frozen=True)
class PackedDocuments:
    """The blocks of prepared documents.

    Args:
        documents: Rows with the column ``target_ids``, in Arrow format.
        ends: (documents,) end of each document in the concatenated text, its separator included.
        block_length: Tokens in a block.
        separator_id: Token after each document.
    """

    documents: datasets.Dataset
    ends: np.ndarray
    block_length: int
    separator_id: int

    def __len__(self) -> int:
        return -(-int(self.ends[-1]) // self.block_length)

    def __getitem__(self, number: int) -> Block:
        start = number * self.block_length
        stop = min(start + self.block_length, int(self.ends[-1]))
        # The documents that end before a place are as many as the separators before it.
        first, last = np.searchsorted(self.ends, [start, stop], side="right").tolist()
        separators = self.ends[first:last] - 1 - start
        is_token = np.ones(stop - start, dtype=np.bool_)
        is_token[separators] = False
        ids = np.full(stop - start, self.separator_id, dtype=np.int64)
        ids[is_token] = self._tokens(start - first, stop - last, first, last)
        return Block(ids, np.cumsum(~is_token) - ~is_token)

    def _tokens(self, start: int, stop: int, first: int, last: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` of these documents, without separators."""
        table = cast("Table", self.documents[first : min(last + 1, len(self.ends))])
        offset = int(self.ends[first - 1]) - first if first else 0
        pieces: list[np.ndarray] = []
        for lists in table.column("target_ids").chunks:
            values = values_of(lists)
            pieces.append(values[max(start - offset, 0) : max(stop - offset, 0)])
            offset += len(values)
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


class Packer:
    """The blocks of a stream of documents; the same as those of ``PackedDocuments``."""

    def __init__(self, settings: PackingSettings) -> None:
        assert settings.separator_id is not None
        self.block_length = settings.block_length
        self.separator_id = settings.separator_id
        self._ids = np.zeros(0, dtype=np.int64)
        self._segments = np.zeros(0, dtype=np.int64)
        self._documents = 0

    def add(self, documents: Lists) -> Iterator[Block]:
        """Add documents; returns the full blocks."""
        lengths = lengths_of(documents)
        values = values_of(documents).astype(np.int64)
        numbers = np.arange(self._documents, self._documents + len(lengths))
        self._documents += len(lengths)
        ids = np.insert(values, np.cumsum(lengths), self.separator_id)
        self._ids = np.concatenate([self._ids, ids])
        self._segments = np.concatenate([self._segments, np.repeat(numbers, lengths + 1)])
        while len(self._ids) >= self.block_length:
            yield self._take(self.block_length)

    def rest(self) -> Iterator[Block]:
        """The last, shorter block."""
        if len(self._ids):
            yield self._take(len(self._ids))

    def _take(self, length: int) -> Block:
        ids, segments = self._ids[:length], self._segments[:length]
        self._ids, self._segments = self._ids[length:], self._segments[length:]
        return Block(ids, segments - segments[0])
