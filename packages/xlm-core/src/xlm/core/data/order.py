"""The order of rows and their seeds, as functions of the run's seed and the position in the stream.

Training reads an endless stream: its epoch e is the e-th permutation of the rows. Global batch k is the
rows at positions k*G to (k+1)*G of the stream, distributed to the ranks in turn. So batches are independent
of the number of workers and processes, all batches are full, and a run interrupted after k batches resumes
at position k*G. Length bucketing permutes the rows within a window of batches, as a function of the window
alone. Evaluation reads every row exactly once, with the noise of epoch 0; no result depends on their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

from xlm.modules import row_seeds


class RowKey(NamedTuple):
    """A row and its seed at a position of the stream."""

    row: int
    """Its index in the data set."""
    seed: int
    place: int
    """Position in the stream of all ranks and epochs, for example for stratified noise."""


@dataclass(frozen=True)
class Bucketing:
    """Length bucketing: rows of similar length share a batch.

    Args:
        lengths: (rows,) length of each row.
        window: Number of batches within which rows are sorted by length.
    """

    lengths: np.ndarray
    window: int


def bucket(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """Distribute the rows of a window over its batches by length.

    The rows must be in random order, which breaks ties and orders the batches and the rows inside a batch. So
    the length is independent of the position of a batch in the epoch and of a row in its batch.

    Args:
        lengths: (rows,) lengths; the number of rows is a multiple of ``batch_size``.
        batch_size: Rows in a batch.

    Returns:
        (rows,) index of the row at each position of the window.
    """
    batches = np.argsort(lengths, kind="stable").reshape(-1, batch_size)
    batches.sort(axis=1)
    return batches[np.argsort(batches[:, 0])].reshape(-1)


class TrainOrder(Sampler[list[RowKey]]):
    """Batches of an endless shuffled stream, from ``start_batch`` up to ``num_batches``.

    Args:
        num_rows: Rows in the data set.
        batch_size: Rows in a batch of one rank.
        num_batches: Batches of the whole run.
        seed: Seed of the run.
        rank, world_size: This process and the number of processes.
        bucketing: Length bucketing; None for none.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int,
        world_size: int,
        bucketing: Bucketing | None = None,
    ) -> None:
        self.num_rows = num_rows
        self.global_batch_size = batch_size * world_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.bucketing = bucketing
        self.start_batch = 0
        self._epoch = -1
        self._permutation = self._seeds = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[RowKey]]:
        window = self.bucketing.window if self.bucketing else 1
        keys: list[list[RowKey]] = []
        for batch in range(self.start_batch, self.num_batches):
            if batch == self.start_batch or batch % window == 0:
                keys = self._batches(batch // window * window, window)
            yield keys[batch % window]

    def _batches(self, first: int, window: int) -> list[list[RowKey]]:
        """This rank's part of the ``window`` batches from ``first`` on."""
        places = np.arange(first, first + window)[:, None] * self.global_batch_size
        places = (places + np.arange(self.global_batch_size)).reshape(-1)
        rows, seeds = self._rows_at(places)
        if self.bucketing is not None:
            order = bucket(self.bucketing.lengths[rows], self.global_batch_size)
            rows, seeds = rows[order], seeds[order]
        batches = zip(*(x.reshape(window, -1)[:, self.rank :: self.world_size].tolist()
                        for x in (rows, seeds, places)), strict=True)  # fmt: skip
        return [list(map(RowKey, *batch)) for batch in batches]

    def _rows_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and seed at consecutive positions of the stream."""
        rows, seeds = np.empty_like(places), np.empty_like(places)
        epochs = places // self.num_rows
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            self._set_epoch(epoch)
            here = epochs == epoch
            index = places[here] - epoch * self.num_rows
            rows[here], seeds[here] = self._permutation[index], self._seeds[index]
        return rows, seeds

    def _set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            seeds = row_seeds(self.seed, epoch, torch.arange(self.num_rows))
            # The seeds are uniform, so sorting the rows by them is a uniform shuffle.
            permutation = torch.argsort(seeds, stable=True)
            self._epoch, self._permutation, self._seeds = epoch, permutation.numpy(), seeds.numpy()


class EvaluationOrder(Sampler[list[RowKey]]):
    """Every row once; rank r takes rows r, r + world_size, ... of the order.

    Args:
        num_rows: Rows in the data set.
        batch_size: Rows in a batch.
        seed: Seed of the run.
        rank, world_size: This process and the number of processes.
        lengths: (rows,) lengths by which rows are sorted, the longest first, so that batches have little
            padding and memory is exhausted at once or never; None for the order of the rows.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.rows: Sequence[int] = range(rank, num_rows, world_size)
        if lengths is not None:
            self.rows = np.argsort(-lengths, kind="stable")[rank::world_size].tolist()
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[RowKey]]:
        seeds = row_seeds(self.seed, 0, torch.tensor(self.rows, dtype=torch.int64)).tolist()
        for start in range(0, len(self.rows), self.batch_size):
            stop = start + self.batch_size
            rows = zip(self.rows[start:stop], seeds[start:stop], strict=True)
            yield [RowKey(index, seed, index) for index, seed in rows]
