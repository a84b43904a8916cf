"""From raw rows to batches: prepare once, order deterministically, collate."""

from xlm.core.data.datamodule import DataModule, LoadedBatch
from xlm.core.data.prepare import PreparedTask, prepare

__all__ = ["DataModule", "LoadedBatch", "PreparedTask", "prepare"]
