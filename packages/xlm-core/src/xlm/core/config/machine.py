"""One-line messages for failures of the machine, each with a remedy."""

import errno
import os
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from xlm.core.config.errors import XLMError

FREE_SPACE = "Free some space, then repeat the command"
PLACE = "Choose writable folders: output_dir=FOLDER, datamodule.cache_dir=FOLDER"
GONE = "Was it moved or deleted? Restore it, or start again with another job_name"
REASONS = {
    errno.ENOSPC: ("the disk is full", FREE_SPACE),
    errno.EDQUOT: ("your quota is used up", FREE_SPACE),
    errno.EFBIG: ("the file size limit is reached", "Raise the limit (ulimit -f) or use another disk"),
    errno.EROFS: ("the file system is read-only", PLACE),
    errno.EACCES: ("permission denied", PLACE),
    errno.EPERM: ("permission denied", PLACE),
    errno.ENOENT: ("it does not exist", GONE),
    errno.ENOTDIR: ("a part of the path is not a folder", PLACE),
    errno.EISDIR: ("it is a folder", "Name a file"),
    errno.ENAMETOOLONG: ("the path is too long", "Shorten job_name or output_dir"),
    errno.ELOOP: ("its links form a cycle", PLACE),
    errno.EIO: (
        "the disk returned an error",
        "Repeat the command; intact checkpoints remain",
    ),
    errno.ESTALE: ("the network folder is gone", GONE),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n) or lower num_workers"),
    errno.ENOMEM: ("the memory is used up", "Fewer rows at once: datamodule.batch_size"),
}
"""Cause and remedy by the error number of the operating system."""
BROKEN_PIPE = 128 + 13
"""Exit code of a process that wrote to a closed pipe, as a shell reports it."""
CLOSED_PIPE = "Error: the output pipe is closed. Written files remain; the same command resumes from them"
NO_MEMORY = (
    "the memory is used up. Fewer rows at once: a smaller datamodule.batch_size, with a larger "
    "trainer.accumulate_grad_batches for the same rows in a step"
)


LOST_PROCESS = (
    "Another process of this run has ended; its output shows why. The previous checkpoint remains; the "
    "same command resumes from it"
)


class MachineError(XLMError):
    """A failure of the machine."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explained(error: BaseException) -> MachineError | None:
    """The error as one of the machine, None for other errors."""
    for found in _chain(error):
        if isinstance(found, BrokenPipeError):
            return MachineError(CLOSED_PIPE, exit_code=BROKEN_PIPE)
        if _is_lost_process(found):
            return MachineError(f"{LOST_PROCESS}. ({_first_line(found)})")
        if _is_out_of_memory(found):
            return MachineError(f"{NO_MEMORY}. ({_first_line(found)})")
        if isinstance(found, OSError) and found.errno in REASONS:
            reason, advice = REASONS[found.errno]
            path = found.filename2 or found.filename
            return MachineError(f"{os.fsdecode(path) if path else 'a file'}: {reason}. {advice}.")
    return None


@contextmanager
def blamed_on(key: str, path: Path) -> Generator[None]:
    """Name the config key whose path the operating system rejects.

    Raises:
        MachineError: If the operating system reports an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise
        reason = REASONS[error.errno][0]
        raise MachineError(f"{key}: {shorten(str(path))} cannot be used: {reason}") from error


def tell_of_threads() -> None:
    """Print a failure of the machine in a thread in one line; users of its result receive the error."""
    usual = threading.excepthook

    def tell(arguments: threading.ExceptHookArgs) -> None:
        message = explained(arguments.exc_value) if arguments.exc_value is not None else None
        if message is None:
            usual(arguments)
        else:
            sys.stderr.write(f"{message}\n")

    threading.excepthook = tell


def shorten(text: str, most: int = 120) -> str:
    """A long text with its middle omitted."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted: of Python, a device, or torch on the CPU (without importing torch)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _is_lost_process(error: BaseException) -> bool:
    """Whether it is an error of torch.distributed about an unreachable process."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _first_line(error: BaseException) -> str:
    return shorten(next(iter(str(error).strip().splitlines()), type(error).__name__))
