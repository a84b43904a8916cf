"""What goes wrong with the machine, not with the program, in one line that says what to do."""

import errno
import os
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from xlm.core.config.errors import XLMError

ROOM = "Make room there, then repeat the command"
PLACE = "Name a place that may be written: output_dir=FOLDER, datamodule.cache_dir=FOLDER"
GONE = "Was it moved or deleted meanwhile? Put it back, or begin anew under another job_name"
REASONS = {
    errno.ENOSPC: ("the disk is full", ROOM),
    errno.EDQUOT: ("your quota is used up", ROOM),
    errno.EFBIG: ("a file may not become larger here", "Raise the limit (ulimit -f) or take another disk"),
    errno.EROFS: ("it can only be read", PLACE),
    errno.EACCES: ("you may not do this there", PLACE),
    errno.EPERM: ("you may not do this there", PLACE),
    errno.ENOENT: ("it is not there", GONE),
    errno.ENOTDIR: ("a part of the path is no folder", PLACE),
    errno.EISDIR: ("it is a folder", "Name a file"),
    errno.ENAMETOOLONG: ("the path is too long", "Shorten job_name or output_dir"),
    errno.ELOOP: ("its links go round in a circle", PLACE),
    errno.EIO: (
        "the disk does not answer as it should",
        "Repeat the command; the checkpoints that are whole stand",
    ),
    errno.ESTALE: ("the network folder has gone", GONE),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n) or lower num_workers"),
    errno.ENOMEM: ("the memory is used up", "Fewer rows at once: datamodule.batch_size"),
}
"""By the number of an operating system's error: what happened, and what to do."""
BROKEN_PIPE = 128 + 13
"""Exit code of a process that wrote to a closed pipe, as a shell reports it."""
CLOSED_PIPE = (
    "Error: nobody reads what is printed any more (a closed pipe). What is written stands; the same command "
    "goes on from there"
)
NO_MEMORY = (
    "the memory is used up. Fewer rows at once: a smaller datamodule.batch_size, with a larger "
    "trainer.accumulate_grad_batches for the same rows in a step"
)


LOST_PROCESS = (
    "Another process of this run has ended, and says why where it printed. The checkpoint before stands; the "
    "same command goes on from there"
)


class MachineError(XLMError):
    """The machine cannot do what was asked of it."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def explained(error: BaseException) -> MachineError | None:
    """The error as one of the machine, None where it is not."""
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
    """Name the key of the config whose path the operating system refuses.

    Raises:
        MachineError: For an error of the operating system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise
        reason = REASONS[error.errno][0]
        raise MachineError(f"{key}: {shorten(str(path))} cannot be used: {reason}") from error


def tell_of_threads() -> None:
    """Let a thread that the machine stops say so in a line; who needs its work gets the error too."""
    usual = threading.excepthook

    def tell(arguments: threading.ExceptHookArgs) -> None:
        told = explained(arguments.exc_value) if arguments.exc_value is not None else None
        if told is None:
            usual(arguments)
        else:
            sys.stderr.write(f"{told}\n")

    threading.excepthook = tell


def shorten(text: str, most: int = 120) -> str:
    """A text with its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a device, of torch's allocator on the CPU (torch is not imported to ask)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _is_lost_process(error: BaseException) -> bool:
    """Of torch.distributed, when a process does not answer any more."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _first_line(error: BaseException) -> str:
    return shorten(next(iter(str(error).strip().splitlines()), type(error).__name__))
