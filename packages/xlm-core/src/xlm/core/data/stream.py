"""Training examples streamed from a source that is too large to prepare.

One reader in each process reads its part of the source in a fixed order; workers filter, preprocess and
tokenise its rows; packing, length bucketing and collating follow in the order of reading. So the batches
depend neither on the number of workers nor on their speed. Memory holds the shuffle buffer, the rows in
progress and one window of examples.

The stream is endless: its epoch e is the source, shuffled through a buffer, as a function of (seed, e). A
resumed run reads again from the start of the interrupted epoch, which costs the time of reading and
tokenising up to its position.

Rows are counted by outcome as in a preparation; checkpoints hold the counts of whole epochs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import LoaderSettings, TaskSettings
from xlm.core.data.encode import Columns, EncodedRows, RowCounts, RowEncoder
from xlm.core.data.order import RowKey, bucket
from xlm.core.data.packing import Block, Packer
from xlm.core.data.prepare import TaskParts, open_source
from xlm.core.data.rows import example_of_block, examples_of_table
from xlm.core.protocols import Example, Row
from xlm.modules import row_seeds

T = TypeVar("T")
GROUP_ROWS = 64
"""Rows that are read at a time, and tokenised by one worker."""


class EpochStart(NamedTuple):
    """Start of an epoch of a stream."""

    epoch: int
    example: int
    """Examples of this process before it."""
    counts: RowCounts = RowCounts()
    """Counts of the rows that this process read before it."""


def open_stream(
    task: TaskSettings,
    parts: TaskParts,
    *,
    max_rows: int | None,
    buffer_size: int,
    seed: int,
    rank: int,
    world_size: int,
) -> datasets.IterableDataset:
    """One process's part of the training split, shuffled through a buffer in each epoch.

    Args:
        task: Its source can be any; a generator function is called again for each epoch.
        parts: The objects of its slots.
        max_rows: Only the first rows; None for all.
        buffer_size: Rows that are held in memory for shuffling.
        seed: Seed of the run.
        rank: This process.
        world_size: Number of processes.
    """
    rows = open_source(task, parts, "train", streaming=True)
    if isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()
    if not isinstance(rows, datasets.IterableDataset):
        rows = datasets.IterableDataset.from_generator(_read_again, gen_kwargs={"task": task, "parts": parts})
    if max_rows is not None:
        rows = rows.take(max_rows)
    return split_dataset_by_node(rows.shuffle(seed=seed, buffer_size=buffer_size), rank, world_size)


def _read_again(task: TaskSettings, parts: TaskParts) -> Iterator[Row]:
    yield from open_source(task, parts, "train", streaming=True)


class _Encode(Dataset[EncodedRows]):
    """Encodes a group of raw rows; the group itself is the key, as a single reader distributes the work."""

    def __init__(self, encoder: RowEncoder) -> None:
        self.encoder = encoder

    @override
    def __getitem__(self, columns: Columns) -> EncodedRows:
        return self.encoder.encode(columns)


class _Groups:
    """Raw rows in groups, read by the process that trains."""

    def __init__(self, rows: datasets.IterableDataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Columns]:
        return cast("Iterator[Columns]", self.rows.iter(batch_size=GROUP_ROWS))


class Stream(Iterable[Any]):
    """The training batches of one process.

    Args:
        rows: This process's part of the source (`open_stream`).
        encoder: Turns raw rows into ids.
        settings: Settings of the training loader.
        collate: Collates the examples of a batch.
        seed: Seed of the run.
        rank: This process.
        world_size: Number of processes.
        num_batches: Batches of the whole run.
        batches_done: Number of batches to skip.
        epoch_starts: Starts of earlier epochs, from ``epoch_starts`` of an earlier run.
    """

    def __init__(
        self,
        *,
        rows: datasets.IterableDataset,
        encoder: RowEncoder,
        settings: LoaderSettings,
        collate: Callable[[Sequence[Example]], Any],
        seed: int,
        rank: int,
        world_size: int,
        num_batches: int,
        batches_done: int = 0,
        epoch_starts: Sequence[EpochStart] = (EpochStart(0, 0),),
    ) -> None:
        self.rows = rows
        self.encoder = encoder
        self.settings = settings
        self.collate = collate
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_batches = num_batches
        self.batches_done = batches_done
        self.epoch_starts = list(epoch_starts)
        self.counts = RowCounts()
        """Counts of the rows read until now, including epochs before a resume."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        size, window = self.settings.batch_size, self.settings.bucketing or 1
        first_batch = self.batches_done // window * window
        examples = self._examples_from(first_batch * size)
        for batch in range(first_batch, self.num_batches, window):
            rows = list(islice(examples, window * size))
            if window > 1:
                rows = _bucketed(rows, size)
            for number in range(max(batch, self.batches_done), min(batch + window, self.num_batches)):
                start = (number - batch) * size
                yield self.collate(rows[start : start + size])

    def first_examples(self, number: int) -> list[Example]:
        """The first examples of the stream."""
        return list(islice(self._examples_from(0), number))

    def _examples_from(self, first: int) -> Iterator[Example]:
        """All examples of this process from number ``first`` on, without end."""
        epoch, number, self.counts = max(
            (start for start in self.epoch_starts if start.example <= first), key=lambda start: start.epoch
        )
        while True:
            begin = number
            for length, make_examples in self._chunks(epoch):
                if number + length > first:
                    keys = self._keys(epoch, begin, number, length)
                    yield from make_examples(keys)[max(first - number, 0) :]
                number += length
            if number == begin:
                raise XLMError("task.source: the stream of the training split has no usable row")
            epoch += 1
            if epoch > self.epoch_starts[-1].epoch:
                self.epoch_starts.append(EpochStart(epoch, number, self.counts))

    def _chunks(self, epoch: int) -> Iterator[tuple[int, Callable[[Sequence[RowKey]], list[Example]]]]:
        """Groups of an epoch's examples: their number, and a function from their seeds to the examples."""
        self.rows.set_epoch(epoch)
        tables = DataLoader(
            _Encode(self.encoder),
            sampler=_Groups(self.rows),
            batch_size=None,
            num_workers=self.settings.num_workers,
            collate_fn=_unchanged,
        )
        packing = self.settings.packing
        packer = Packer(packing) if packing is not None else None
        for table, counts in cast("Iterable[EncodedRows]", tables):
            self.counts += counts
            if table.num_columns == 0:
                continue
            if packer is None:
                chosen = table.select(self.settings.columns or table.column_names)
                yield len(table), partial(examples_of_table, chosen)
            else:
                yield self._packed(packer.add(table.column("target_ids").combine_chunks()))
        if packer is not None:
            yield self._packed(packer.rest())

    def _packed(self, blocks: Iterator[Block]) -> tuple[int, Callable[[Sequence[RowKey]], list[Example]]]:
        assert self.settings.packing is not None
        found = list(blocks)
        return len(found), partial(_examples_of_blocks, found, keep_apart=self.settings.packing.keep_apart)

    def _keys(self, epoch: int, begin: int, number: int, length: int) -> list[RowKey]:
        """Keys of examples ``number`` to ``number + length`` in an epoch that began at example ``begin``."""
        places = torch.arange(number, number + length) * self.world_size + self.rank
        seeds = row_seeds(self.seed, epoch, places - begin * self.world_size)
        return [RowKey(-1, *key) for key in zip(seeds.tolist(), places.tolist(), strict=True)]


def _unchanged(value: T) -> T:
    return value


def _bucketed(examples: list[Example], batch_size: int) -> list[Example]:
    """Distribute the examples of a window over its batches by length; places do not change."""
    places = [example.get("place", 0) for example in examples]
    lengths = [
        sum(len(example.get(name, ())) for name in ("prompt_ids", "target_ids")) for example in examples
    ]
    order = bucket(np.array(lengths), batch_size).tolist()
    pairs = zip(order, places, strict=True)
    return [cast("Example", {**examples[row], "place": place}) for row, place in pairs]


def _examples_of_blocks(blocks: list[Block], keys: Sequence[RowKey], *, keep_apart: bool) -> list[Example]:
    return [
        example_of_block(block, key, keep_apart=keep_apart) for block, key in zip(blocks, keys, strict=True)
    ]
