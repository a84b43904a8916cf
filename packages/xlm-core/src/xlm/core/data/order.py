"""The order of rows and their seeds, as functions of the run's seed and the place in the stream.

Training reads an endless stream: its epoch e is the e-th permutation of the rows. Global batch k is the
rows at places k*G to (k+1)*G of the stream, dealt to the ranks in turn. So neither the number of workers
nor of processes changes what is in a batch, all batches are full, and a run that stopped after k batches
continues at place k*G. Evaluation reads every row exactly once, in order, with the noise of epoch 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from xlm.modules import row_seeds


class RowKey(NamedTuple):
    """Which row, and what belongs to it at this place of the stream."""

    row: int
    """Its index in the data set."""
    seed: int
    place: int
    """In the stream of all ranks and epochs; for stratified noise, say."""


class TrainOrder(Sampler[list[RowKey]]):
    """Batches of an endless shuffled stream, from ``start_batch`` up to ``num_batches``.

    Args:
        num_rows: Rows in the data set.
        batch_size: Rows in a batch of one rank.
        num_batches: Batches of the whole run; the stream is endless, the run is not.
        seed: Seed of the run.
        rank, world_size: This process and the number of processes.
    """

    def __init__(
        self, *, num_rows: int, batch_size: int, num_batches: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[RowKey]]:
        epoch = -1
        permutation = seeds = torch.empty(0, dtype=torch.int64)
        for batch in range(self.start_batch, self.num_batches):
            keys: list[RowKey] = []
            first = batch * self.batch_size * self.world_size
            for place in range(first + self.rank, first + self.batch_size * self.world_size, self.world_size):
                if place // self.num_rows != epoch:
                    epoch = place // self.num_rows
                    permutation, seeds = self._epoch(epoch)
                index = place % self.num_rows
                keys.append(RowKey(int(permutation[index]), int(seeds[index]), place))
            yield keys

    def _epoch(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        seeds = row_seeds(self.seed, epoch, torch.arange(self.num_rows))
        # The seeds are uniform, so sorting the rows by them is a uniform shuffle.
        return torch.argsort(seeds, stable=True), seeds


class EvaluationOrder(Sampler[list[RowKey]]):
    """Every row once, in order; rank r takes rows r, r + world_size, ..."""

    def __init__(self, *, num_rows: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.rows = range(rank, num_rows, world_size)
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
