"""Reading of local files: cells stay text, and errors name file and line.

``datasets`` reads them. This module sets what its readers would guess: the separator of a table, that cells
are text (``007`` and ``NA`` are neither a number nor missing; an empty cell is None), and that a byte order
mark is skipped.
"""

import codecs
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import datasets
from datasets.data_files import resolve_pattern
from datasets.exceptions import DatasetGenerationError

from xlm.core.config.errors import XLMError

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "text",
}
SEPARATORS = (",", "\t", ";")
Rows = datasets.Dataset | datasets.IterableDataset


def format_of(file: Path) -> str | None:
    """The format of a file by its ending, None for other files."""
    return FORMATS.get(file.suffix.lower())


def existing_files(text: str, folder: Path | None = None) -> list[Path]:
    """The files that a text names: an existing path is used literally, anything else is a pattern.

    Args:
        text: A file, a folder (all files below it) or a pattern as `datasets` takes it.
        folder: Base of relative names; None for the working directory.
    """
    path = (folder or Path()) / Path(text).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.exists():
        return [path]
    base = glob.escape(str((folder or Path()).absolute()))
    with suppress(FileNotFoundError):
        return sorted(map(Path, resolve_pattern(str(Path(text).expanduser()), base)))
    return []


def read_files(
    splits: Mapping[str, Sequence[Path]],
    *,
    kind: str,
    split: str,
    arguments: Mapping[str, Any],
    streaming: bool = False,
) -> Rows:
    """Rows of files of one format.

    Args:
        splits: The files of each split.
        kind: Their format: a value of `FORMATS`.
        split: The requested rows, in the syntax of ``datasets``: ``train[:90%]``.
        arguments: Arguments of the reader of ``datasets``.
        streaming: Whether rows are read on demand.

    Raises:
        XLMError: If a file cannot be read; names the file, the line and the cause.
    """
    files = [file for those in splits.values() for file in those]
    how = dict(arguments)
    try:
        if kind == "csv":
            how = _as_texts(files, how)
        elif kind in ("json", "text") and how.get("encoding", "utf-8").lower() in ("utf-8", "utf8"):
            how["encoding"] = "utf-8-sig"  # the reader of JSON lines ignores the encoding otherwise
        escaped = {name: [glob.escape(str(f.absolute())) for f in those] for name, those in splits.items()}
        return datasets.load_dataset(kind, data_files=escaped, split=split, streaming=streaming, **how)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):  # a slice without a row
            raise
        cause = error.__cause__ or error
        raise XLMError(find_fault(files, kind, how) or f"{type(cause).__name__}: {cause}") from error


def _as_texts(files: Sequence[Path], how: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with which every cell of a table stays text."""
    asked = {name for name in ("sep", "delimiter", "dialect") if name in how}
    chosen = dict(how) if asked else {**how, "sep": _separator(files)}
    chosen = {"keep_default_na": False, "na_values": [""]} | chosen
    if "features" not in chosen:
        columns = _load(files[0], "csv", chosen | {"nrows": 1}).column_names
        chosen["features"] = datasets.Features({name: datasets.Value("string") for name in columns})
    return chosen


def _load(file: Path, kind: str, how: Mapping[str, Any]) -> datasets.Dataset:
    """The rows of one file."""
    return datasets.load_dataset(kind, data_files=[glob.escape(str(file.absolute()))], split="train", **how)


def _separator(files: Sequence[Path]) -> str:
    """The separator of the columns: of comma, tab and semicolon the most frequent in the first line."""
    found: dict[str, Path] = {}
    for file in files:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            found.setdefault(max(SEPARATORS, key=lines.readline().count), file)
    if len(found) > 1:
        parts = " and ".join(f"{sep!r} in {file}" for sep, file in found.items())
        raise XLMError(f"the columns are divided by {parts}: read one kind of file at a time")
    return next(iter(found))


def find_fault(files: Sequence[Path], kind: str, how: Mapping[str, Any]) -> str | None:
    """The first error in the files, with its line if it has one; None if none is found."""
    for file in files:
        strict = (how.get("encoding_errors") or "strict") == "strict"
        fault = _fault_of_encoding(file, kind, how) if strict else None
        if fault is None:
            fault = _fault_of_json(file) if kind == "json" else _fault_of_reading(file, kind, how)
        if fault is not None:
            return f"{file}{fault}"
    return None


def _fault_of_encoding(file: Path, kind: str, how: Mapping[str, Any]) -> str | None:
    if kind == "parquet":
        return None
    encoding = how.get("encoding") or "utf-8"
    decode = codecs.getincrementaldecoder(encoding)()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                decode.decode(line)
            except UnicodeDecodeError as error:
                return (
                    f", line {number}: {error.reason} (0x{line[error.start]:02x}), so it is not {encoding}. "
                    "Set the encoding (task.source.encoding=latin-1), or read such bytes as U+FFFD "
                    "(task.source.encoding_errors=replace)"
                )
    return None


def _fault_of_json(file: Path) -> str | None:
    with file.open("rb") as lines:
        start = lines.read(4).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        try:
            json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            return f": {error}"
        return None
    seen: dict[str, tuple[str, int]] = {}
    for number, line in _lines(file):
        try:
            row = json.loads(line)
        except ValueError as error:
            return f", line {number}: {error}. Is the file truncated? The line is {_short(line)}"
        if not isinstance(row, dict):
            return f", line {number}: a row is an object, {{...}}; found {_short(line)}"
        for name, value in cast("dict[str, object]", row).items():
            before, since = seen.setdefault(name, (_kind(value), number))
            if _kind(value) not in (before, "null"):
                if before != "null":
                    return f", line {number}: {name} is a {_kind(value)}, in line {since} it is a {before}"
                seen[name] = (_kind(value), number)
    late = [(since, name, kind) for name, (kind, since) in seen.items() if since > 1 and kind != "null"]
    if late:
        since, name, kind = max(late)
        return (
            f", line {since}: {name} is a {kind}, in the lines before it is null. Start with a row that has "
            'it, or write "" for null'
        )
    return None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8-sig", newline="\n", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        bool: "boolean",
        str: "text",
        dict: "object",
        list: "list",
        int: "number",
        float: "number",
    }
    return kinds.get(type(value), "null")


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 60 else f"{line[:30]} ... {line[-20:]}"


def _fault_of_reading(file: Path, kind: str, how: Mapping[str, Any]) -> str | None:
    try:
        _load(file, kind, how)
    except (DatasetGenerationError, ValueError, OSError) as error:
        return f": {str(error.__cause__ or error).strip()}"
    return None
