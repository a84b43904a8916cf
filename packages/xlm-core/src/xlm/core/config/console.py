"""The consoles of the harness, which print paths, names and texts literally."""

import errno
import os
from typing import NoReturn

from rich.console import Console
from typing_extensions import override


class _Console(Console):
    """rich's console, without its silent exit when the output pipe is closed."""

    @override
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def make_console(*, stderr: bool = False) -> Console:
    """A console without markup, emoji names, highlighting and line breaks.

    For bold parts of a line print a ``rich.text.Text``.
    """
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


console = make_console()
"""The console of the jobs; muted on all ranks but 0."""


def say(line: str) -> None:
    """Print one line."""
    console.print(line)
