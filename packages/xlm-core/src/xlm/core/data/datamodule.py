"""The data loaders of a run: named, per stage, deterministic and resumable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from xlm.core.data.order import EvaluationOrder, RowKey, TrainOrder
from xlm.core.data.prepare import PreparedTask
from xlm.core.data.rows import PreparedRows
from xlm.core.protocols import Collator, Example
from xlm.core.schema import LoaderSettings, Stage

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class LoadedBatch(Generic[BatchT]):
    """What a loader yields: the family's batch, and beside it what only the harness needs."""

    batch: BatchT
    seeds: Tensor
    """(rows,) int64"""
    examples: Sequence[Example] | None
    """The raw rows, where generated texts are compared with them."""


@dataclass(frozen=True)
class Collate(Generic[BatchT]):
    """Calls the family's collator and keeps the seeds, in the loader's worker."""

    collator: Collator[BatchT]
    keep_examples: bool

    def __call__(self, examples: Sequence[Example]) -> LoadedBatch[BatchT]:
        """Collate ``examples``."""
        return LoadedBatch(
            batch=self.collator(examples),
            seeds=torch.tensor([example["seed"] for example in examples], dtype=torch.int64),
            examples=examples if self.keep_examples else None,
        )


class DataModule(lightning.LightningDataModule):
    """Makes each loader of each stage from its settings.

    Args:
        prepared: The task's rows on disk.
        loaders: Settings of the loaders by stage and name.
        collators: The collator of each loader, by the same keys.
        seed: Seed of the run.
        num_batches: Training batches of the whole run.
    """

    def __init__(
        self,
        *,
        prepared: PreparedTask,
        loaders: Mapping[Stage, Mapping[str, LoaderSettings]],
        collators: Mapping[Stage, Mapping[str, Collator[Any]]],
        seed: int,
        num_batches: int,
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.loaders = loaders
        self.collators = collators
        self.seed = seed
        self.num_batches = num_batches
        self._batches_done = 0

    def rows(self, stage: Stage, name: str) -> PreparedRows:
        """The rows that a loader reads."""
        settings = self.loaders[stage][name]
        rows = self.prepared.load(settings.split)
        if settings.max_rows is not None:
            rows = rows.select(range(min(settings.max_rows, len(rows))))
        return PreparedRows(rows)

    def collate(self, stage: Stage, name: str) -> Callable[[Sequence[Example]], LoadedBatch[Any]]:
        """The loader's collate function."""
        keep_examples = "generation" in self.loaders[stage][name].uses
        return Collate(self.collators[stage][name], keep_examples=keep_examples)

    @override
    def train_dataloader(self) -> DataLoader[Example]:
        [name] = self.loaders["train"]
        rows = self.rows("train", name)
        order = TrainOrder(
            num_rows=len(rows),
            batch_size=self.loaders["train"][name].batch_size,
            num_batches=self.num_batches,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        order.start_batch = self._batches_done
        return self._loader("train", name, rows, order)

    @override
    def val_dataloader(self) -> list[DataLoader[Example]]:
        return self._evaluation("val")

    @override
    def test_dataloader(self) -> list[DataLoader[Example]]:
        return self._evaluation("test")

    @override
    def state_dict(self) -> dict[str, int]:
        # In whole optimizer steps: micro-batches after the last one have left no trace in the weights.
        assert self.trainer is not None
        return {"batches_done": self.trainer.global_step * self.trainer.accumulate_grad_batches}

    @override
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_done = state_dict["batches_done"]

    @override
    def transfer_batch_to_device(
        self, batch: LoadedBatch[Any], device: torch.device, dataloader_idx: int
    ) -> LoadedBatch[Any]:
        return replace(
            batch,
            batch=super().transfer_batch_to_device(batch.batch, device, dataloader_idx),
            seeds=batch.seeds.to(device, non_blocking=True),
        )

    def _evaluation(self, stage: Stage) -> list[DataLoader[Example]]:
        loaders: list[DataLoader[Example]] = []
        for name, settings in self.loaders[stage].items():
            rows = self.rows(stage, name)
            order = EvaluationOrder(
                num_rows=len(rows),
                batch_size=settings.batch_size,
                seed=self.seed,
                rank=self._rank,
                world_size=self._world_size,
            )
            loaders.append(self._loader(stage, name, rows, order))
        return loaders

    def _loader(
        self, stage: Stage, name: str, rows: PreparedRows, order: Sampler[list[RowKey]]
    ) -> DataLoader[Example]:
        num_workers = self.loaders[stage][name].num_workers
        return DataLoader(
            rows,
            batch_sampler=order,
            collate_fn=self.collate(stage, name),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1
