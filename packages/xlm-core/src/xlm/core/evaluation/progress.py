"""How far an evaluation is, so that an interrupted one continues without repeating rows.

After each batch the sums of all metrics and the lengths of the files of rows are one consistent state. It is
stored from time to time and when an exception ends the evaluation; a later one in the same folder skips the
batches that are done. A killed process repeats the rows of the last seconds.

Each of several processes has a state of its own rows.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout

from xlm.core.config.errors import XLMError
from xlm.core.evaluation.evaluation import Evaluation
from xlm.core.evaluation.predictions import PredictionWriter
from xlm.core.saving.checkpoints import write_atomically

STATE, LOCK = ".progress.{}.pt", ".progress.lock"
"""File of the state of a rank, and of the lock."""
SECONDS = 5.0
"""Time between two stored states."""


class Progress:
    """The state of an evaluation in one process.

    Args:
        folder: Folder of the evaluation.
        weights: Fingerprint of the evaluated weights; a file of the same name may hold others later.
        rank: This process.
        world_size: Number of processes; those of a state had the same rows if there were as many.
    """

    def __init__(self, folder: Path, weights: str, *, rank: int = 0, world_size: int = 1) -> None:
        self.folder = folder
        self._means = {"weights": weights, "world_size": world_size}
        self._rank = rank
        self._stored = time.perf_counter()
        self._state: dict[str, Any] | None = None

    def resume(self, evaluation: Evaluation, writer: PredictionWriter) -> None:
        """Restore metrics and open files as they were, in the writer's folder; new ones without a state."""
        self.folder = writer.folder
        state = self._state = _read(self._file, self._means)
        if state is not None:
            evaluation.restore("test", state["metrics"])
        writer.open(state["files"] if state is not None else None)

    def is_done(self, loader: int, batch: int) -> bool:
        """Whether a batch was evaluated before."""
        return self._state is not None and batch < self._state["done"].get(loader, 0)

    def add(self, loader: int, batch: int, evaluation: Evaluation, writer: PredictionWriter) -> None:
        """Note that a batch is done."""
        done = {**(self._state["done"] if self._state is not None else {}), loader: batch + 1}
        self._state = {
            **self._means,
            "done": done,
            "metrics": evaluation.state("test"),
            "files": writer.state(),
        }
        if time.perf_counter() - self._stored > SECONDS:
            self.store()

    def store(self) -> None:
        """Write the state after the last batch."""
        if self._state is not None:
            write_atomically(self._file, lambda part: torch.save(self._state, part))
        self._stored = time.perf_counter()

    @contextmanager
    def kept(self) -> Generator[None]:
        """Store the state if the evaluation is interrupted, remove it if it ends; rank 0 locks for all.

        Raises:
            XLMError: If another evaluation writes in this folder.
        """
        with writing(self.folder) if self._rank == 0 else nullcontext():
            try:
                yield
            except BaseException:
                self.store()
                raise
            else:
                self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.folder / STATE.format(self._rank)


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Lock the folder of an evaluation for this process.

    Raises:
        XLMError: If another process evaluates in it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise XLMError(f"{folder} is being written by another process. Wait for its end") from error
    try:
        yield
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)


def is_being_written(folder: Path) -> bool:
    """Whether a process evaluates in a folder."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def is_interrupted(folder: Path, weights: str) -> bool:
    """Whether a folder has a state of these weights to continue from, and no process evaluates in it."""
    states = (_read(path, {"weights": weights}) for path in folder.glob(STATE.format("*")))
    return any(state is not None for state in states) and not is_being_written(folder)


def _read(path: Path, means: Mapping[str, object]) -> dict[str, Any] | None:
    """The stored state of an evaluation with these weights and processes; None if there is none."""
    if not path.is_file():
        return None
    found = cast("dict[str, Any]", torch.load(path, weights_only=True))
    return found if all(found[name] == value for name, value in means.items()) else None
