"""Real processes for tests at the price of one start: imports everything once, then forks for each order.

An order is a line of JSON on stdin: {"root", "overrides", "environment", "log"}. The answer is the process's
id; when the process has ended, a line with its id and its exit code (as a shell gives it) follows.
"""

import json
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  # pyright: ignore[reportUnusedImport]  # the import is what takes time
import torch.utils.tensorboard  # noqa: F401  # pyright: ignore[reportUnusedImport]  # half of a short training
import toy_family  # noqa: F401  # pyright: ignore[reportUnusedImport]
import toy_jobs

from xlm.core.command import evaluate, train  # noqa: F401  # pyright: ignore[reportUnusedImport]
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import explained
from xlm.core.saving.versions import package_versions
from xlm.core.training import callbacks  # noqa: F401  # pyright: ignore[reportUnusedImport]


def serve() -> None:
    """Fork a process for each order until stdin ends."""
    package_versions()  # cached for all of them
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_obey(order))  # what the server would do at its end is not this process's
        _answer(pid)
        threading.Thread(target=_wait, args=(pid,), daemon=True).start()


def _answer(*words: int) -> None:
    # One write for each line: those of several threads must not mix, or an answer is waited for in vain.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _wait(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    _answer(pid, code if code >= 0 else 128 - code)


def _obey(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for mine, standard in ((null, 0), (log, 1), (log, 2)):
        os.dup2(mine, standard)
    os.environ.update(order["environment"])
    try:
        toy_jobs.run(Path(order["root"]), *order["overrides"])
    except Exception as error:  # noqa: BLE001  # the test reads any error
        message = error if isinstance(error, XLMError) else explained(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(message or f"{type(error).__name__}: {error}", flush=True)
        return message.exit_code if message else 1
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    serve()
