"""Raw rows to cached token ids, once.

The cache of a task lies under a key made of everything that shapes its rows: the nodes of source and
preprocessing, the tokenizer, and the code that both run. It is written beside its place and moved there
when complete, so an interrupted preparation leaves nothing that counts as done; a lock lets a second
process wait for the first.
"""

import functools
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import datasets.exceptions
import numpy as np
import pyarrow.compute as pc
from datasets.arrow_writer import SchemaInferenceError
from filelock import FileLock

from xlm.core.errors import XLMError
from xlm.core.protocols import Preprocess, Row, Source, Tokenizer
from xlm.core.schema import TaskSettings

ID_COLUMNS = ("prompt_ids", "target_ids")


@dataclass(frozen=True)
class SplitCard:
    """What one prepared split holds."""

    rows: int
    tokens: int
    length_quantiles: dict[str, int]
    """Lengths of prompt and target together, in tokens, at the quantiles 0, 0.5, 0.95 and 1."""
    bytes: int


@dataclass(frozen=True)
class PreparedTask:
    """A prepared task on disk."""

    folder: Path
    cards: dict[str, SplitCard]
    was_cached: bool

    def load(self, split: str) -> datasets.Dataset:
        """Rows of a split, memory-mapped."""
        return datasets.Dataset.load_from_disk(str(self.folder / split))


def prepare(
    task: TaskSettings,
    *,
    source: Source,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    cache_dir: Path,
    num_proc: int = 1,
) -> PreparedTask:
    """Find the task's rows in the cache, or make them."""
    folder = cache_dir / task.name / cache_key(task, source, preprocess)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        was_cached = folder.exists()
        if not was_cached:
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            for split, source_split in task.splits.items():
                rows = _encoded(
                    source(split=source_split), preprocess, tokenizer, unfinished / "raw" / split, num_proc
                )
                rows.save_to_disk(str(unfinished / split))
                (unfinished / split / "card.json").write_text(json.dumps(asdict(_describe(rows))))
            shutil.rmtree(unfinished / "raw", ignore_errors=True)
            unfinished.rename(folder)
    cards = {
        split: SplitCard(**json.loads((folder / split / "card.json").read_text())) for split in task.splits
    }
    return PreparedTask(folder=folder, cards=cards, was_cached=was_cached)


def cache_key(task: TaskSettings, source: Source, preprocess: Preprocess) -> str:
    """Hash of everything that shapes the prepared rows."""
    nodes = {
        "source": task.source,
        "preprocess": task.preprocess,
        "tokenizer": task.tokenizer,
        "splits": task.splits,
        "code": [_code(source), _code(preprocess)],
    }
    return hashlib.sha256(json.dumps(nodes, sort_keys=True).encode()).hexdigest()[:16]


def _code(function: Callable[..., object]) -> str:
    """Hash of the source file of a function, so that an edited generator makes new data."""
    while isinstance(function, functools.partial):
        function = function.func
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else repr(function)


def _encoded(
    rows: Iterable[Row], preprocess: Preprocess, tokenizer: Tokenizer, folder: Path, num_proc: int
) -> datasets.Dataset:
    """Rows as columns of ids: in one pass over a generator, in several processes over a data set."""
    if isinstance(rows, datasets.Dataset):

        def encode(batch: Mapping[str, Sequence[object]]) -> dict[str, list[object]]:
            rows = (
                preprocess(dict(zip(batch, values, strict=True)), tokenizer)
                for values in zip(*batch.values(), strict=True)
            )
            encoded = [row for row in rows if row is not None]
            return {name: [row[name] for row in encoded] for name in encoded[0]}

        return rows.map(
            encode,
            batched=True,
            remove_columns=rows.column_names,
            num_proc=num_proc if num_proc > 1 else None,
            load_from_cache_file=False,
            desc="encoding",
        )
    try:
        return datasets.Dataset.from_generator(
            lambda: (preprocess(row, tokenizer) for row in rows),
            cache_dir=str(folder),
            fingerprint=f"{folder.parents[1].stem}-{folder.name}",
        )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, SchemaInferenceError):
            raise XLMError(f"task.source: no rows for the split {folder.name!r}") from None
        raise XLMError(f"task.source: {type(cause).__name__} while making its rows: {cause}") from cause


def _describe(rows: datasets.Dataset) -> SplitCard:
    table = rows.data
    lengths = np.zeros(len(rows), dtype=np.int64)
    for column in ID_COLUMNS:
        if column in rows.column_names:
            lengths += pc.call_function("list_value_length", [table.column(column)]).to_numpy()
    quantiles = {
        f"{q:g}": int(np.quantile(lengths, q, method="lower")) if len(rows) else 0 for q in (0, 0.5, 0.95, 1)
    }
    return SplitCard(
        rows=len(rows), tokens=int(lengths.sum()), length_quantiles=quantiles, bytes=table.nbytes
    )
