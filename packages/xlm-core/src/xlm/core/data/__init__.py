"""From raw rows to batches: prepare once (or stream), order deterministically, pack, collate."""

from xlm.core.data.datamodule import DataModule, LoadedBatch
from xlm.core.data.local_copy import LocalCopy, read_data_files
from xlm.core.data.prepare import PreparedTask, TaskParts, prepare
from xlm.core.data.sources import read_local_copy, read_rows
from xlm.core.data.stream import Stream, open_stream

__all__ = [
    "DataModule",
    "LoadedBatch",
    "LocalCopy",
    "PreparedTask",
    "Stream",
    "TaskParts",
    "open_stream",
    "prepare",
    "read_data_files",
    "read_local_copy",
    "read_rows",
]
