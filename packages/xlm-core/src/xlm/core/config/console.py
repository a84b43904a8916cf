"""The consoles of the harness. What they print is data: paths, names and texts stand there as they are."""

import errno
import os
from typing import NoReturn

from rich.console import Console
from typing_extensions import override


class _Console(Console):
    """rich's console, which would end the process without a word when nobody reads it any more."""

    @override
    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def make_console(*, stderr: bool = False) -> Console:
    """A console that reads no markup, no emoji names and no numbers in what it prints, and breaks no line.

    Where a part of a line is to be bold, it is printed as a `rich.text.Text`.
    """
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


console = make_console()
"""What the jobs print on; quiet on all processes but the first."""


def say(line: str) -> None:
    """One line to the reader."""
    console.print(line)
