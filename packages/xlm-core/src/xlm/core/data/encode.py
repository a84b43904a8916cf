"""Raw rows to columns of token ids, many rows at a time.

Only this step drops or truncates rows of data, and counts them:

- ``task.filter`` returns False: filtered.
- ``task.preprocess`` returns None: refused.
- No column has a token: empty.
- The target exceeds ``task.length_limit``: truncated or dropped, depending on its ``longer``.
- The text is not valid Unicode (bytes that a reader replaced by U+FFFD, or lone surrogates, which become
  U+FFFD here): kept, and counted as repaired.
- A character or a word is outside the vocabulary (``unk_id``): kept, rows and tokens are counted.
- ``task.preprocess`` returns a ``note`` beside the columns: counted under this note, if the row is kept.

An exception in a filter or in a preprocess function stops the preparation; it never counts as a refusal.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import LengthLimitSettings
from xlm.core.data.arrow import Lists, Table, join_tables, make_lists, make_table
from xlm.core.protocols import Preprocess, Row, RowFilter, Tokenizer

COLUMNS = ("prompt_ids", "target_ids", "fixed")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

MOST_CHARACTERS = 4_000_000
"""Characters of text that are read and tokenised together, unless a single row has more: a tokenizer
needs about a hundred times the memory of its input."""

Columns = Mapping[str, Sequence[object]]
"""Rows by column, as ``datasets`` returns them in batches."""


@dataclass
class RowCounts:
    """Counts of the rows that were read, by outcome."""

    read: int = 0
    filtered: int = 0
    refused: int = 0
    empty: int = 0
    dropped: int = 0
    """Rows dropped because their target is too long."""
    cut: int = 0
    """Rows with a truncated target."""
    cut_tokens: int = 0
    repaired: int = 0
    """Rows with text that was not valid Unicode."""
    unknown: int = 0
    """Kept rows with unknown tokens."""
    unknown_tokens: int = 0
    notes: dict[str, int] = field(default_factory=dict[str, int])
    """Number of kept rows with each note of ``task.preprocess``."""

    @property
    def left(self) -> int:
        """Rows that are kept."""
        return self.read - self.filtered - self.refused - self.empty - self.dropped

    def __add__(self, other: "RowCounts") -> "RowCounts":
        total = RowCounts(**{name: getattr(self, name) + getattr(other, name) for name in NUMBERS})
        for note in sorted(self.notes.keys() | other.notes.keys()):
            total.notes[note] = self.notes.get(note, 0) + other.notes.get(note, 0)
        return total


NUMBERS = tuple(name for name in RowCounts.__dataclass_fields__ if name != "notes")


class EncodedRows(NamedTuple):
    """Rows as ids."""

    table: Table
    """Lists of ids (the smallest integers that hold the vocabulary) and of booleans."""
    counts: RowCounts


class RowEncoder:
    """Filters, preprocesses and tokenises rows.

    Args:
        preprocess: Returns ids or text of each row.
        tokenizer: Encodes the text of many rows at once.
        row_filter: Selects raw rows; None keeps all.
        length_limit: Length limit of the targets; None for none.
    """

    def __init__(
        self,
        *,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        row_filter: RowFilter | None = None,
        length_limit: LengthLimitSettings | None = None,
    ) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.row_filter = row_filter
        self.length_limit = length_limit
        self._vocab_size = tokenizer.vocab_size
        self._unk_id = tokenizer.unk_id
        self._id_type = np.dtype(np.uint16 if self._vocab_size <= 2**16 else np.int32)

    def encode(self, columns: Columns) -> EncodedRows:
        """Encode the rows of ``columns``; a batch without kept rows has a table without columns.

        Raises:
            XLMError: If the code of a slot fails, or returns unknown columns.
        """
        counts = RowCounts()
        encoded: list[Mapping[str, object]] = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            counts.read += 1
            if self.row_filter is not None and not self._call("filter", row, self.row_filter):
                counts.filtered += 1
                continue
            fields = self._call("preprocess", row, self.preprocess, self.tokenizer)
            if fields is None:
                counts.refused += 1
            else:
                encoded.append(cast("Mapping[str, object]", fields))
        if not encoded:
            return EncodedRows(make_table({}), counts)
        names = _check_names(encoded)
        tables = [self._encode_some(rows, names, counts) for rows in _portions(encoded)]
        return EncodedRows(join_tables(tables), counts)

    def _encode_some(self, rows: list[Mapping[str, object]], names: list[str], counts: RowCounts) -> Table:
        lists: dict[str, list[Sequence[Any]]] = {
            name: self._ids([row[name] for row in rows], counts) for name in names
        }
        lengths = {name: np.fromiter(map(len, lists[name]), np.int64, len(rows)) for name in names}
        keep = self._limit(lists, lengths, counts)
        _count_notes([row.get("note") for row in rows], keep, counts)
        for name in names:
            lists[name] = [ids for ids, kept in zip(lists[name], keep, strict=True) if kept]
        self._count_unknown(lists, counts)
        return make_table({name: self._array(name, lists[name]) for name in names})

    def _count_unknown(self, lists: dict[str, list[Sequence[Any]]], counts: RowCounts) -> None:
        if self._unk_id is None:
            return
        columns = [lists[name] for name in lists.keys() - {"fixed"}]
        in_rows = [sum(list(ids).count(self._unk_id) for ids in row) for row in zip(*columns, strict=True)]
        counts.unknown += sum(number > 0 for number in in_rows)
        counts.unknown_tokens += sum(in_rows)

    def _call(self, slot: str, row: Row, function: Any, *arguments: object) -> object:
        try:
            return function(row, *arguments)
        except XLMError:
            raise
        except Exception as error:
            found = ", ".join(f"{name}: {_short(value)}" for name, value in row.items())
            raise XLMError(f"task.{slot}: {type(error).__name__}: {error}\n  in the row {found}") from error

    def _ids(self, values: list[Any], counts: RowCounts) -> list[Sequence[Any]]:
        """Lists of ids unchanged; texts tokenised in one call."""
        if not any(isinstance(value, str) for value in values):
            return values
        texts: list[str] = []
        for text in values:
            valid = _valid(text)
            counts.repaired += REPLACEMENT in valid
            texts.append(valid)
        return list(self.tokenizer.encode_batch(texts))

    def _limit(
        self, lists: dict[str, list[Sequence[Any]]], lengths: dict[str, np.ndarray], counts: RowCounts
    ) -> np.ndarray:
        """Apply the length limit; returns which rows are kept."""
        num_tokens = np.zeros_like(next(iter(lengths.values())))
        for name in lengths.keys() - {"fixed"}:
            num_tokens += lengths[name]
        keep = num_tokens > 0
        counts.empty += int((~keep).sum())
        if "fixed" in lengths and (lengths["fixed"] != lengths["target_ids"]).any():
            raise XLMError("task.preprocess: `fixed` must be as long as `target_ids` in every row")
        if self.length_limit is None or "target_ids" not in lengths:
            return keep
        limit = self.length_limit.max_length
        too_long = lengths["target_ids"] > limit
        if self.length_limit.longer == "drop":
            counts.dropped += int(too_long.sum())
            return keep & ~too_long
        counts.cut += int(too_long.sum())
        counts.cut_tokens += int((lengths["target_ids"][too_long] - limit).sum())
        for row in np.flatnonzero(too_long).tolist():
            for name in lists.keys() & {"target_ids", "fixed"}:
                lists[name][row] = lists[name][row][:limit]
        return keep

    def _array(self, name: str, lists: list[Sequence[Any]]) -> Lists:
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        count = int(lengths.sum())
        if name == "fixed":
            return make_lists(lengths, np.fromiter(chain.from_iterable(lists), np.bool_, count))
        values = np.fromiter(chain.from_iterable(lists), np.int64, count)
        least, most = (int(values.min()), int(values.max())) if count else (0, 0)
        if least < 0 or most >= self._vocab_size:
            raise XLMError(
                f"task.preprocess: {name} holds the id {least if least < 0 else most}; "
                f"the tokenizer has 0 to {self._vocab_size - 1}"
            )
        return make_lists(lengths, values.astype(self._id_type))


class CountingEncoder:
    """An encoder for several processes: it writes its counts to files, one per process.

    Args:
        encoder: Encodes the rows.
        folder: Folder of these files.
        empty: Table without rows, for a batch without kept rows.
    """

    def __init__(self, encoder: RowEncoder, folder: Path, empty: Table) -> None:
        self.encoder = encoder
        self.folder = folder
        self.empty = empty

    def __call__(self, columns: Columns) -> Table:
        """Encode a batch of rows."""
        table, counts = self.encoder.encode(columns)
        with (self.folder / f"{os.getpid()}.counts").open("a") as file:
            file.write(json.dumps(asdict(counts)) + "\n")
        return check_columns(table, self.empty) if table.num_columns else self.empty

    def total(self) -> RowCounts:
        """Add up the counts of all processes, and remove the files."""
        total = RowCounts()
        for path in self.folder.glob("*.counts"):
            for line in path.read_text().splitlines():
                total += RowCounts(**json.loads(line))
            path.unlink()
        return total


def check_columns(table: Table, first: Table) -> Table:
    """Reject rows whose columns differ from those of earlier rows."""
    if table.column_names != first.column_names:
        names = " and ".join(", ".join(t.column_names) for t in (first, table))
        raise XLMError(f"task.preprocess: rows of one split have different columns: {names}")
    return table


def batches_of_rows(rows: Iterator[Row], size: int) -> Iterator[Columns]:
    """Rows by column, ``size`` at a time, or fewer if their text is long."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += _characters(row)
        if len(batch) == size or characters >= MOST_CHARACTERS:
            yield _transposed(batch)
            batch, characters = [], 0
    if batch:
        yield _transposed(batch)


def _portions(rows: list[Mapping[str, object]]) -> Iterator[list[Mapping[str, object]]]:
    """The rows, divided where their text exceeds the limit of characters."""
    start = characters = 0
    for number, row in enumerate(rows):
        size = _characters(row)
        if number > start and characters + size > MOST_CHARACTERS:
            yield rows[start:number]
            start, characters = number, 0
        characters += size
    yield rows[start:]


def _characters(row: Mapping[str, object]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))


def _transposed(rows: list[Row]) -> Columns:
    names = rows[0].keys()
    return {name: [row.get(name) for row in rows] for name in names}


def _count_notes(notes: list[object], keep: np.ndarray, counts: RowCounts) -> None:
    """Count the notes of the kept rows."""
    for note, kept in zip(notes, keep.tolist(), strict=True):
        if note is None:
            continue
        if not isinstance(note, str):
            raise XLMError(f"task.preprocess: returns the note {_short(note)}; it must be a text")
        if kept:
            counts.notes[note] = counts.notes.get(note, 0) + 1


def _check_names(encoded: list[Mapping[str, object]]) -> list[str]:
    names = encoded[0].keys() - {"note"}
    if not names or not names <= set(COLUMNS):
        raise XLMError(
            f"task.preprocess: returns the columns {', '.join(sorted(names)) or '(none)'}; an example has "
            f"{', '.join(COLUMNS)}"
        )
    if any(row.keys() - {"note"} != names for row in encoded):
        raise XLMError("task.preprocess: returns different columns for different rows of one split")
    if "fixed" in names and "target_ids" not in names:
        raise XLMError("task.preprocess: returns `fixed` without `target_ids`")
    return [name for name in COLUMNS if name in names]


def _valid(text: object) -> str:
    """Text without lone surrogates, which no tokenizer accepts."""
    if not isinstance(text, str):
        raise XLMError(f"task.preprocess: returns text for some rows and {_short(text)} for others")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
