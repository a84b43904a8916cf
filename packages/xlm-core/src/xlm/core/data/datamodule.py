"""The data loaders of a run: named, per stage, deterministic and resumable."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar, cast

import datasets
import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import LoaderSettings, PackingSettings, Stage
from xlm.core.data.encode import RowCounts
from xlm.core.data.order import Bucketing, EvaluationOrder, RowKey, TrainOrder
from xlm.core.data.packing import PackedDocuments
from xlm.core.data.prepare import PreparedTask
from xlm.core.data.rows import Examples, PackedRows, PreparedRows, SeedRows
from xlm.core.data.stream import EpochStart, Stream
from xlm.core.protocols import Collator, Example

BatchT = TypeVar("BatchT")
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedBatch(Generic[BatchT]):
    """The output of a loader: the family's batch, and fields that only the harness reads."""

    batch: BatchT
    seeds: Tensor
    """(rows,) int64"""
    examples: Sequence[Example] | None
    """The raw rows, if generated texts are compared with them."""
    num_tokens: int
    """Number of tokens of the examples, without padding and special tokens."""
    places: Sequence[int]
    """Position of each row in the stream of training; in evaluation, the index of the row."""


@dataclass(frozen=True)
class Collate(Generic[BatchT]):
    """Calls the family's collator and stores the seeds, in the loader's worker."""

    collator: Collator[BatchT]
    keep_examples: bool

    def __call__(self, examples: Sequence[Example]) -> LoadedBatch[BatchT]:
        """Collate ``examples``."""
        return LoadedBatch(
            batch=self.collator(examples),
            seeds=torch.tensor([example["seed"] for example in examples], dtype=torch.int64),
            examples=examples if self.keep_examples else None,
            num_tokens=sum(_length(example) for example in examples),
            places=[example.get("place", index) for index, example in enumerate(examples)],
        )


def _prompt_lengths(rows: Examples) -> np.ndarray | None:
    """(rows,) tokens that a predictor reads: of the prompt, else of a target with fixed tokens."""
    if not isinstance(rows, PreparedRows):
        return None
    if "prompt_ids" in rows.columns:
        return rows.lengths(["prompt_ids"])
    return rows.lengths(["target_ids"]) if "fixed" in rows.columns else None


def _length(example: Example) -> int:
    columns = (example.get("prompt_ids"), example.get("target_ids"))
    return sum(len(ids) for ids in columns if ids is not None)


OpenStream = Callable[..., Stream]
"""Creates the training stream of one process from the arguments that only the data module has."""


class DataModule(lightning.LightningDataModule):
    """Creates each loader of each stage from its settings.

    Args:
        prepared: The task's rows on disk.
        loaders: Settings of the loaders by stage and name.
        collators: The collator of each loader, by the same keys.
        seed: Seed of the run.
        num_batches: Training batches of the whole run.
        open_stream: Opens the source of training examples that are streamed instead of prepared.
        with_examples: Loaders, by stage, whose batches include their raw examples.
    """

    def __init__(
        self,
        *,
        prepared: PreparedTask,
        loaders: Mapping[Stage, Mapping[str, LoaderSettings]],
        collators: Mapping[Stage, Mapping[str, Collator[Any]]],
        seed: int,
        num_batches: int,
        open_stream: OpenStream | None = None,
        with_examples: Mapping[Stage, Collection[str]] | None = None,
    ) -> None:
        super().__init__()
        self.prepared = prepared
        self.loaders = loaders
        self.collators = collators
        self.seed = seed
        self.num_batches = num_batches
        self.open_stream = open_stream
        self.with_examples = with_examples or {}
        self._stream: Stream | None = None
        self._state: dict[str, Any] = {"batches_done": 0}

    def rows(self, stage: Stage, name: str) -> Examples:
        """The examples that a loader of prepared data reads.

        Raises:
            XLMError: If the task's rows lack a column that the loader's settings require.
        """
        settings = self.loaders[stage][name]
        if settings.columns == []:
            assert settings.max_rows is not None
            return SeedRows(settings.max_rows)
        rows = self.prepared.load(settings.split)
        if settings.packing is not None:
            return self._packed(stage, name, rows, settings.packing)
        if settings.max_rows is not None:
            rows = rows.select(range(min(settings.max_rows, len(rows))))
        try:
            return PreparedRows(rows, settings.columns)
        except XLMError as error:
            raise XLMError(f"datamodule.{stage}.{name}.{error}") from None

    def first_examples(self, stage: Stage, name: str, number: int) -> Sequence[Example]:
        """A few examples of a loader, with arbitrary seeds."""
        if self._streams(stage, name):
            return self._make_stream(name, num_workers=0).first_examples(number)
        rows = self.rows(stage, name)
        return rows.__getitems__([RowKey(row, row, row) for row in range(min(number, len(rows)))])

    def collate(self, stage: Stage, name: str) -> Callable[[Sequence[Example]], LoadedBatch[Any]]:
        """The loader's collate function."""
        keep_examples = name in self.with_examples.get(stage, ())
        return Collate(self.collators[stage][name], keep_examples=keep_examples)

    @override
    def train_dataloader(self) -> Iterable[LoadedBatch[Any]]:
        [name] = self.loaders["train"]
        if self._streams("train", name):
            self._stream = self._make_stream(name)
            return self._stream
        rows = self.rows("train", name)
        settings = self.loaders["train"][name]
        bucketing = None
        if settings.bucketing is not None:
            bucketing = Bucketing(cast("PreparedRows", rows).lengths(), settings.bucketing)
        order = TrainOrder(
            num_rows=len(rows),
            batch_size=settings.batch_size,
            num_batches=self.num_batches,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            bucketing=bucketing,
        )
        order.start_batch = self._state["batches_done"]
        return self._loader("train", name, rows, order)

    @override
    def val_dataloader(self) -> list[DataLoader[Example]]:
        return self._evaluation("val")

    @override
    def test_dataloader(self) -> list[DataLoader[Example]]:
        return self._evaluation("test")

    @override
    def state_dict(self) -> dict[str, Any]:
        # In whole optimizer steps: later micro-batches have not changed the weights.
        assert self.trainer is not None
        state = {"batches_done": self.trainer.global_step * self.trainer.accumulate_grad_batches}
        if self._stream is None:
            return state
        starts = [(epoch, example, asdict(counts)) for epoch, example, counts in self._stream.epoch_starts]
        return state | {"epoch_starts": self._of_every_process(starts)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def stream_counts(self) -> RowCounts | None:
        """Counts of the rows that all processes read from the stream; None if none was read."""
        if self._stream is None:
            return None
        return sum(self._of_every_process(self._stream.counts), RowCounts())

    def _of_every_process(self, value: T) -> list[T]:
        """Gather the value of each process, by rank; every process must call this."""
        if self._world_size == 1:
            return [value]
        every: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(every, value)
        return every

    def _streams(self, stage: Stage, name: str) -> bool:
        return self.open_stream is not None and self.loaders[stage][name].split == "train"

    def _make_stream(self, name: str, **changes: Any) -> Stream:
        assert self.open_stream is not None
        every = self._state.get("epoch_starts", [[(0, 0, {})]] * self._world_size)
        if len(every) != self._world_size:
            raise XLMError(
                f"The run was stopped with {len(every)} processes and resumes with {self._world_size}. A "
                "stream has one part per process: resume with the same number, or prepare the data "
                "(task.streaming=false)."
            )
        return self.open_stream(
            settings=self.loaders["train"][name].model_copy(update=changes),
            collate=self.collate("train", name),
            rank=self._rank,
            world_size=self._world_size,
            num_batches=self.num_batches,
            batches_done=self._state["batches_done"],
            epoch_starts=[
                EpochStart(epoch, example, RowCounts(**counts))
                for epoch, example, counts in every[self._rank]
            ],
        )

    def _packed(
        self, stage: Stage, name: str, rows: datasets.Dataset, packing: PackingSettings
    ) -> PackedRows:
        if rows.column_names != ["target_ids"]:
            raise XLMError(
                f"datamodule.{stage}.{name}.packing: the task has {', '.join(rows.column_names)}; "
                "only rows with target_ids alone can be packed. Set it to null."
            )
        assert packing.separator_id is not None
        blocks = PackedDocuments(
            rows.with_format("arrow"),
            self.prepared.document_ends(self.loaders[stage][name].split),
            packing.block_length,
            packing.separator_id,
        )
        return PackedRows(
            blocks, max_blocks=self.loaders[stage][name].max_rows, keep_apart=packing.keep_apart
        )

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
                lengths=_prompt_lengths(rows) if stage == "test" and GENERATION in settings.uses else None,
            )
            loaders.append(self._loader(stage, name, rows, order))
        return loaders

    def _loader(
        self, stage: Stage, name: str, rows: Examples, order: Sampler[list[RowKey]]
    ) -> DataLoader[Example]:
        num_workers = self.loaders[stage][name].num_workers
        return DataLoader(
            cast("Dataset[Example]", rows),
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
