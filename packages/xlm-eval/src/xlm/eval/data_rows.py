"""The rows of a test loader: which they are, how many were left out, lengths and bytes of text."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar, cast

import torch

from xlm.core.data import DataModule
from xlm.core.data.arrow import Table, lengths_of
from xlm.core.data.order import RowKey
from xlm.core.protocols import Example, Tokenizer

T = TypeVar("T")
CHUNK = 256
"""Rows that are read at once."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COLUMNS = ("prompt_ids", "target_ids", "fixed")
LEFT_OUT = ("filtered", "refused", "empty", "dropped")
"""Raw rows that the preparation left out, by reason (``xlm.core.data.encode.RowCounts``)."""


class Lengths:
    """Numbers of tokens of texts."""

    def __init__(self, lengths: Iterable[int] = ()) -> None:
        self._counts = Counter(lengths)

    def add(self, length: int) -> None:
        """Add a text."""
        self._counts[length] += 1

    def quantiles(self) -> dict[str, float] | None:
        """The mean and some quantiles; None if there is no text."""
        total = self._counts.total()
        if not total:
            return None
        ordered, reached, found = sorted(self._counts.items()), 0, {}
        for length, count in ordered:
            reached += count
            for quantile in QUANTILES:
                if reached >= quantile * total:
                    found.setdefault(f"{quantile:g}", length)
        return {"mean": sum(length * count for length, count in ordered) / total, **found}

    def distance(self, other: "Lengths") -> float | None:
        """Largest difference of the cumulative distributions (Kolmogorov-Smirnov); None if one is empty."""
        totals = [max(lengths._counts.total(), 1) for lengths in (self, other)]
        if not self._counts or not other._counts:
            return None
        here = there = largest = 0.0
        for length in sorted({*self._counts, *other._counts}):
            here += self._counts[length] / totals[0]
            there += other._counts[length] / totals[1]
            largest = max(largest, abs(here - there))
        return largest


class LoaderRows:
    """The rows of a loader of the test stage.

    Args:
        datamodule: The data.
        name: The loader.
        tokenizer: Turns the counted tokens back into text.
    """

    def __init__(self, datamodule: DataModule, name: str, tokenizer: Tokenizer) -> None:
        self._settings = datamodule.loaders["test"][name]
        self._prepared = datamodule.prepared
        self._rows = datamodule.rows("test", name)
        self._tokenizer = tokenizer
        self._texts = hashlib.sha256()

    def describe(self) -> dict[str, Any]:
        """The split, the number of rows, those that were left out, and the hash of the others."""
        split = self._settings.split
        counts = self._prepared.cards[split].counts
        packing = self._settings.packing
        without_ids = self._settings.columns == []
        available = self._prepared.cards[split].rows
        return {
            "split": split,
            "number": len(self._rows),
            "unit": "texts" if without_ids else "rows" if packing is None else "blocks",
            "left_out": {
                **{name: number for name, number in asdict(counts).items() if name in LEFT_OUT},
                "not_evaluated": 0 if without_ids or packing is not None else available - len(self._rows),
            },
            "truncated": counts.cut,
            "hash": None if without_ids else self._hash(),
        }

    def with_texts(
        self, records: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
        """Records of some rows, and the texts that their likelihoods count."""
        self._texts = hashlib.sha256()
        for chunk in _chunks(records):
            yield chunk, [self._text(example) for example in self._examples([each["row"] for each in chunk])]

    def text_hash(self) -> str:
        """Hash of the texts of the last ``with_texts``, independent of the tokenizer."""
        return self._texts.hexdigest()

    def target_lengths(self) -> Lengths:
        """Lengths of all targets of the split, in tokens."""
        rows = self._prepared.load(self._settings.split).with_format("arrow")
        return Lengths(lengths_of(cast("Table", rows.data).column("target_ids")).tolist())

    def _examples(self, rows: Sequence[int]) -> list[Example]:
        return self._rows.__getitems__([RowKey(row, row, row) for row in rows])

    def _hash(self) -> str:
        """Hash of the ids of the rows, in their order."""
        found = hashlib.sha256()
        for chunk in _chunks(range(len(self._rows))):
            for example in self._examples(chunk):
                for name in COLUMNS:
                    ids = example.get(name)
                    found.update(b"-" if ids is None else f"{len(ids)}:".encode())
                    if ids is not None:
                        found.update(ids.to(torch.int64).numpy().tobytes())
        return found.hexdigest()

    def _text(self, example: Example) -> str:
        ids = example.get("target_ids")
        if ids is None:
            return ""
        if "fixed" in example:
            ids = ids[~example["fixed"]]
        separator = self._settings.packing.separator_id if self._settings.packing is not None else None
        text = self._tokenizer.decode([token for token in ids.tolist() if token != separator])
        encoded = in_bytes(text)
        self._texts.update(f"{len(encoded)}:".encode() + encoded)
        return text


def in_bytes(text: str) -> bytes:
    """A text in UTF-8, of which bits per byte are counted."""
    return text.encode("utf-8", "surrogatepass")


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
