"""Lists of names in messages: the closest ones first, long lists in columns."""

import difflib
from collections.abc import Iterable, Sequence

WIDTH = 100
"""Width of the help and of messages in characters."""


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """A question that names the closest of ``known``; empty if none is close."""
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def listed(names: Iterable[str], title: str) -> str:
    """``title`` and the names: in one line if they fit, else in columns below."""
    every = list(names)
    line = f" {title} {', '.join(every) or 'nothing'}"
    return line if len(line) <= WIDTH else "\n  ".join([f" {title}", *columns(every, WIDTH - 2)])


def columns(names: Sequence[str], width: int) -> list[str]:
    """Lines of at most ``width`` characters: the names side by side if they fit, else also below."""
    if len(line := ", ".join(names)) <= width:
        return [line]
    wide = max(map(len, names)) + 2
    number = max(1, (width + 2) // wide)
    rows = -(-len(names) // number)
    return ["".join(f"{name:<{wide}}" for name in names[row::rows]).rstrip() for row in range(rows)]
