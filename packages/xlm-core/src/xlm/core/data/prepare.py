"""Raw rows to cached token ids, once.

The folder of a task's data is named by their cache key. The data are written to a temporary folder and moved
when complete, so an interrupted preparation is never taken for a complete one; a lock makes a second process
wait for the first. Cached data need no lock, no source and no network. Their checksums are verified each
time; damaged data are reported and prepared again.
"""

import functools
import inspect
import json
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from datasets.exceptions import DatasetGenerationError
from datasets.utils.tqdm import tqdm
from filelock import FileLock

from xlm.core.config.errors import XLMError
from xlm.core.config.integrity import damaged_files, describe_files, parse_record
from xlm.core.config.machine import explained
from xlm.core.config.schema import Stage, TaskSettings
from xlm.core.data.arrow import Table, lengths_of
from xlm.core.data.cache_key import cache_key
from xlm.core.data.encode import CountingEncoder, RowCounts, RowEncoder, batches_of_rows, check_columns
from xlm.core.protocols import Preprocess, Row, RowFilter, Source, Tokenizer

ID_COLUMNS = ("prompt_ids", "target_ids")
ROWS = "rows*.arrow"
"""Files of rows, one per process that wrote them."""
RECORD = "checksums.json"
"""Size and checksum of each file of a prepared task."""
BATCH_ROWS = 512
"""Rows that are encoded and written at a time."""
BATCH_BYTES = 2**26
"""The same in bytes of a data set's raw rows, on the average, where rows are large."""


@dataclass(frozen=True)
class SplitCard:
    """Summary of a prepared split."""

    rows: int
    tokens: int
    length_quantiles: dict[str, int]
    """Lengths of prompt and target together, in tokens, at the quantiles 0, 0.5, 0.95 and 1."""
    bytes: int
    """On disk."""
    counts: RowCounts = field(default_factory=RowCounts)
    """Counts of the raw rows, by outcome."""


@dataclass(frozen=True)
class PreparedTask:
    """A prepared task on disk."""

    folder: Path
    cards: dict[str, SplitCard]
    was_cached: bool
    damage: str | None = None
    """The damage of cached data that were prepared again."""

    def load(self, split: str) -> datasets.Dataset:
        """Rows of a split, memory-mapped."""
        names = [Path(name) for name in _recorded(self.folder)]  # the folder may hold others
        return _load([self.folder / name for name in names if name.match(f"{split}/{ROWS}")])

    def document_ends(self, split: str) -> np.ndarray:
        """(rows,) int64, memory-mapped: end of each row if all are concatenated with a token after each."""
        return np.load(self.folder / split / "ends.npy", mmap_mode="r")


@dataclass(frozen=True, kw_only=True)
class TaskParts:
    """The objects of a task's slots."""

    source: Source
    preprocess: Preprocess
    tokenizer: Tokenizer
    row_filter: RowFilter | None = None

    def encoder(self, task: TaskSettings) -> RowEncoder:
        """Turns rows of the source into ids."""
        return RowEncoder(
            preprocess=self.preprocess,
            tokenizer=self.tokenizer,
            row_filter=self.row_filter,
            length_limit=task.length_limit,
        )


def prepare(
    task: TaskSettings,
    parts: TaskParts,
    *,
    cache_dir: Path,
    num_proc: int = 1,
    used: Collection[Stage] | None = None,
) -> PreparedTask:
    """Find the task's rows in the cache, or prepare them.

    Args:
        task: Its settings.
        parts: Objects of its slots.
        cache_dir: Folder of prepared data.
        num_proc: Number of processes that prepare.
        used: Splits whose checksums are verified; None for all. Of the others the sizes are.

    Raises:
        XLMError: If the source cannot be read, has no rows, or a slot's code fails on one.
    """
    key = cache_key(
        task,
        functions=[parts.source, parts.row_filter, parts.preprocess],
        tokenizer=parts.tokenizer,
    )
    folder = cache_dir / task.name / key
    splits: list[Stage] = [split for split in task.splits if not (task.streaming and split == "train")]
    damage = damage_of(folder, splits, used)
    was_there = os.path.lexists(folder) and damage is None
    if not was_there:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            damage = damage_of(folder, splits, used)  # another process may have made it meanwhile
            was_there = os.path.lexists(folder) and damage is None
            if not was_there:
                unfinished = folder.with_suffix(".unfinished")
                _remove(unfinished)
                try:
                    for split in splits:
                        _prepare_split(task, parts, split, unfinished / split, num_proc)
                except XLMError as error:
                    if damage is None:
                        raise
                    raise XLMError(
                        f"The prepared data in {folder} are damaged ({damage}) and cannot be prepared again: "
                        f"{error}"
                    ) from error
                _put_in_place(unfinished, folder)
    return PreparedTask(
        folder=folder,
        cards={s: _read_card(folder / s) for s in splits},
        was_cached=was_there,
        damage=damage,
    )


def damage_of(folder: Path, splits: Collection[Stage], used: Collection[Stage] | None = None) -> str | None:
    """Describe the damage of prepared data; None without damage or without data.

    Args:
        folder: Folder of the data.
        splits: Required splits.
        used: Splits whose checksums are verified; None for all. Of the others the sizes are.
    """
    if not os.path.lexists(folder):
        return None
    try:
        files = _recorded(folder)
        expected = {f"{split}/{name}" for split in splits for name in ("card.json", "ends.npy")}
        if lacking := sorted(expected - files.keys()):
            return f"its {RECORD} lacks {', '.join(lacking)}"
        unread = [name for name in files if used is not None and name.partition("/")[0] not in used]
        unread = [name for name in unread if not name.endswith("card.json")]
        return ", ".join(damaged_files(folder, files, unread)) or None
    except (ValueError, OSError) as error:  # of the disk, or another process prepares the data right now
        return str(error)


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and checksums of the files of a prepared task.

    Raises:
        ValueError: If there is no record, or it is damaged, or it belongs to another task.
    """
    if not (folder / RECORD).is_file():
        raise ValueError(f"it has no {RECORD} (made by a version before 1.0.0, or incomplete)")
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {RECORD} is damaged") from error
    files = parse_record(content.get("files")) if isinstance(content, dict) else None
    if files is None:
        raise ValueError(f"its {RECORD} is damaged")
    if (key := content.get("key")) != folder.name:
        raise ValueError(f"it holds the data of {key}")
    return files


def _put_in_place(unfinished: Path, folder: Path) -> None:
    names = [path.relative_to(unfinished).as_posix() for path in unfinished.rglob("*") if path.is_file()]
    record = {"key": folder.name, "files": describe_files(unfinished, names)}
    (unfinished / RECORD).write_text(json.dumps(record), encoding="utf-8")
    _remove(folder)  # damaged; processes that have mapped its files keep them
    unfinished.rename(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


NO_NETWORK = (
    "  Without network, run the same command with job_type=prepare_data on a machine that has one\n"
    "  and copy its folder datamodule.cache_dir here, or set a local copy of the data:\n"
    "  source=FOLDER (see docs/guides/data.md)."
)
TOO_FEW = (
    "  The source has too few rows (a text file is one, unless task.source.sample_by is set).\n"
    "  Add rows, or divide them differently: 'task.splits.{}=train[50%:75%]'"
)


def open_source(task: TaskSettings, parts: TaskParts, split: Stage, *, streaming: bool) -> Iterable[Row]:
    """Rows of a split of the task's source.

    Raises:
        XLMError: If it cannot be read; explains what to do without network.
    """
    source: Any = parts.source
    if streaming and "streaming" in inspect.signature(source).parameters:
        source = functools.partial(source, streaming=True)
    try:
        return source(split=task.splits[split])
    except XLMError:
        raise
    except Exception as error:
        cause, hint = error, "\n" + NO_NETWORK
        if "corresponds to no data" in str(error):  # message of `datasets` for a slice without a row
            hint = "\n" + TOO_FEW.format(split)
        elif isinstance(error, DatasetGenerationError):  # the files are there
            cause, hint = error.__cause__ or error, ""
        raise XLMError(
            f"task.source: cannot read the split {task.splits[split]!r}. {type(cause).__name__}: {cause}"
            + hint
        ) from error


def _prepare_split(task: TaskSettings, parts: TaskParts, split: Stage, folder: Path, num_proc: int) -> None:
    folder.mkdir(parents=True)
    rows = open_source(task, parts, split, streaming=task.streaming)
    encoder = parts.encoder(task)
    try:
        if isinstance(rows, datasets.Dataset):
            counts = _map(rows, encoder, folder, split, num_proc)
        else:
            counts = _write(rows, encoder, folder, split)
    except XLMError:
        raise
    except Exception as error:
        if (failure := explained(error)) is not None:
            raise failure from error
        cause = error.__cause__ or error
        raise XLMError(f"task.source: {type(cause).__name__} while reading its rows: {cause}") from error
    if counts.read == 0:
        raise XLMError(f"task.source: no rows for the split {task.splits[split]!r}")
    if counts.left == 0:
        lost = {name: value for name, value in asdict(counts).items() if value}
        raise XLMError(f"task.source: no row of the split {task.splits[split]!r} is kept: {lost}")
    (folder / "card.json").write_text(json.dumps(asdict(_describe(folder, counts))))


def _map(rows: datasets.Dataset, encoder: RowEncoder, folder: Path, split: str, num_proc: int) -> RowCounts:
    """Encode a data set with ``datasets``: in several processes, written to the cache."""
    source = cast("Any", rows.data)
    batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * source.num_rows // max(source.nbytes, 1)))
    lost = RowCounts()
    table: Table | None = None
    start, number = 0, 1
    while table is None or not table.num_columns:  # the first kept row determines the columns
        if start >= len(rows):
            return lost
        table, counts = encoder.encode(rows[start : start + number])
        lost += counts
        start, number = start + number, min(2 * number, batch_rows)
    counting = CountingEncoder(encoder, folder, table.slice(0, 0))
    if num_proc > 1:  # the processes share the cores, so that the tokenizer needs no threads
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows.map(
        counting,
        batched=True,
        batch_size=batch_rows,
        remove_columns=rows.column_names,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / "rows.arrow"),
        load_from_cache_file=False,
        new_fingerprint=f"{folder.parent.stem}-{split}",
        desc=f"preparing {split}",
    )
    return counting.total()


def _write(rows: Iterable[Row], encoder: RowEncoder, folder: Path, split: str) -> RowCounts:
    """Encode rows that can only be read in sequence."""
    total = RowCounts()
    written: Table | None = None
    progress = tqdm(desc=f"preparing {split}", unit=" examples")
    with progress, ArrowWriter(path=str(folder / "rows.arrow")) as writer:
        for columns in batches_of_rows(iter(rows), BATCH_ROWS):
            table, counts = encoder.encode(columns)
            total += counts
            if table.num_columns:
                written = table if written is None else check_columns(table, written)
                writer.write_table(table)
            progress.update(counts.read)
        if written is not None:
            writer.finalize()
    return total


def _describe(folder: Path, counts: RowCounts) -> SplitCard:
    """Measure a written split, and write the ends of its documents for packing."""
    rows = _load(list(folder.glob(ROWS)))
    table = cast("Table", rows.data)
    columns = [table.column(name) for name in ID_COLUMNS if name in rows.column_names]
    lengths = np.zeros(len(rows), dtype=np.int64)
    for column in columns:
        lengths += lengths_of(column)
    np.save(folder / "ends.npy", np.cumsum(lengths_of(columns[-1]) + 1))
    quantiles = (0, 0.5, 0.95, 1)
    return SplitCard(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        length_quantiles={f"{q:g}": int(np.quantile(lengths, q, method="lower")) for q in quantiles},
        bytes=sum(file.stat().st_size for file in folder.iterdir()),
        counts=counts,
    )


def _load(files: list[Path]) -> datasets.Dataset:
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in sorted(files)])


def _read_card(folder: Path) -> SplitCard:
    content = json.loads((folder / "card.json").read_text())
    return SplitCard(**content | {"counts": RowCounts(**content["counts"])})
