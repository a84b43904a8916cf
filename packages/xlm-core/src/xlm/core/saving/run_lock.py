"""One training at a time in the folder of a run.

The lock is a file lock of the operating system (flock, or its substitute in ``filelock``), so it ends with
its process, however that ends; on a network file system it depends on that system's locks. A file beside it
names its holder.
"""

import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psutil
from filelock import FileLock, Timeout

from xlm.core.config.errors import XLMError

LOCK, HOLDER = ".training.lock", ".training.json"
PATIENCE = 15
"""Seconds that the helper processes of a dead process may need to release its lock."""


def is_lock(path: Path) -> bool:
    """Whether a file of a run's folder belongs to the lock."""
    return path.name.startswith((LOCK, HOLDER))


@contextmanager
def only_writer(folder: Path) -> Generator[None]:
    """Lock the folder of a run, which is created if necessary.

    Raises:
        XLMError: If another training has the lock; names its host, process and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE if _is_dead(_holder(folder)) else 0)
    except Timeout as error:
        raise XLMError(_refusal(folder)) from error
    try:
        _write_holder(folder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _write_holder(folder: Path) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    }
    part = folder / f"{HOLDER}.part"
    part.write_text(json.dumps(holder) + "\n", encoding="utf-8")
    part.replace(folder / HOLDER)


def _holder(folder: Path) -> dict[str, Any]:
    """The current or last holder of the lock; empty if unknown."""
    try:
        content = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process ran on this machine and has ended."""
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and isinstance(pid, int) and not psutil.pid_exists(pid)


def _refusal(folder: Path) -> str:
    holder = _holder(folder)
    who = "process {pid} on {host} since {start}".format_map({"pid": "?", "host": "?", "start": "?"} | holder)
    return (
        f"The run {folder} is being trained by {who}. Wait for its end, stop it (the same command then "
        "resumes from its last checkpoint), or choose another job_name."
    )
