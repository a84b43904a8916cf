"""From raw rows to batches: prepare once (or stream), order deterministically, pack, collate."""

from xlm.core.data.datamodule import DataModule, LoadedBatch
from xlm.core.data.prepare import PreparedTask, TaskParts, prepare
from xlm.core.data.stream import Stream, open_stream

__all__ = ["DataModule", "LoadedBatch", "PreparedTask", "Stream", "TaskParts", "open_stream", "prepare"]
