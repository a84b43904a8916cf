"""JSON lines with one record for each evaluated row, written while an evaluation runs."""

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ESCAPED = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Characters that JSON allows in a text but some readers treat as line ends."""


class RowFile:
    """One file of rows; each process writes its own part until ``merge``.

    Args:
        path: The merged file of all processes, in the order of loaders and rows.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, path: Path, *, rank: int = 0, world_size: int = 1) -> None:
        self.path = path
        self.rank = rank
        self.world_size = world_size
        self._file: BinaryIO | None = None
        self._batches: dict[str, int] = {}

    def open(self, state: Mapping[str, Any] | None = None) -> None:
        """Open this process's part in the folder of ``path``, new or as in a ``state``."""
        if state is None:
            self._file = self._part(self.rank).open("wb")
            return
        self._file = self._part(self.rank).open("r+b")
        self._file.truncate(state["size"])
        self._file.seek(0, os.SEEK_END)
        self._batches = dict(state["batches"])

    def state(self) -> dict[str, Any]:
        """Size of this process's part in bytes, and the number of batches of each loader."""
        assert self._file is not None
        return {"size": self._file.tell(), "batches": dict(self._batches)}

    def write(self, loader: str, rows: Sequence[int], records: Sequence[Mapping[str, object]]) -> None:
        """Append the records of one batch, with loader, index of the row and index of the batch."""
        assert self._file is not None
        batch = self._batches.get(loader, 0)
        self._batches[loader] = batch + 1
        for row, record in zip(rows, records, strict=True):
            whole = {"loader": loader, "row": row, "batch": batch, **record}
            self._file.write(_one_line(whole).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Finish this process's part."""
        if self._file is not None:
            self._file.close()

    def merge(self) -> None:
        """Merge the closed parts of all processes (on rank 0), one line in memory at a time."""
        loaders: list[str] = []
        index = array("q")  # loader, row, part and offset of each line
        paths = [self._part(rank) for rank in range(self.world_size)]
        parts = [path.open("rb") for path in paths]
        for number, part in enumerate(parts):
            offset = 0
            for line in part:
                record = json.loads(line)
                if record["loader"] not in loaders:
                    loaders.append(record["loader"])
                index.extend((loaders.index(record["loader"]), record["row"], number, offset))
                offset += len(line)
        keys = np.asarray(index, dtype=np.int64).reshape(-1, 4)
        names = np.argsort(np.argsort(np.array(loaders))) if loaders else np.zeros(0, dtype=np.int64)
        with self.path.open("wb") as merged:
            for line in np.lexsort((keys[:, 1], names[keys[:, 0]])):
                part = parts[keys[line, 2]]
                part.seek(keys[line, 3])
                merged.write(part.readline())
        for part, path in zip(parts, paths, strict=True):
            part.close()
            path.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.rank{rank}")


def _one_line(record: Mapping[str, object]) -> str:
    """JSON that every reader treats as one line; lone surrogates are escaped."""
    text = json.dumps(record, ensure_ascii=False).translate(ESCAPED)
    return text.encode("utf-8", "backslashreplace").decode()
