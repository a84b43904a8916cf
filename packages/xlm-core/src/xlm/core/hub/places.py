"""Files and folders that a config from elsewhere may name: below the working directory or in the cache."""

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from omegaconf import MISSING

from xlm.core.hub.references import CACHE, IN_CACHE

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:(//|:)|[A-Za-z]:[\\/]")
"""URLs, other file systems (``simplecache::x``), and paths with a drive."""


def place_problems(name: str, value: object, key: str, formats: frozenset[str]) -> Iterator[str]:
    """Problems of a value as a path.

    Args:
        name: The last part of its key, which determines what is allowed.
        value: A plain value, resolved.
        key: The whole key.
        formats: Formats of ``datasets`` that a ``path`` may name instead of a repository.
    """
    if name == "path":
        # Functions of tasks pass it to datasets.load_dataset, which also accepts folders and builders.
        if not isinstance(value, str) or not (value in formats or REPOSITORY.fullmatch(value)):
            others = "".join(f" or {other}" for other in sorted(formats))
            yield f"{key}: {value!r} is not a repository of the Hub (USER/NAME){others}"
        elif value not in formats and leaves(value):
            yield f"{key}: {value!r} is a link out of the working directory"
    elif name in ("data_files", "local"):
        yield from _file_problems(value, key)
    elif name == "folder":
        if not (isinstance(value, str) and (value == CACHE or IN_CACHE.fullmatch(value))):
            yield f"{key}: {value!r} is not a folder below {CACHE}"
    elif isinstance(value, str) and not IN_CACHE.fullmatch(value) and value != CACHE:
        if is_elsewhere(value):
            yield f"{key}: {value!r} is a path that is not below the working directory"
        elif "/" in value and name != "monitor" and leaves(value):
            yield f"{key}: {value!r} is a link out of the working directory"


def _file_problems(node: object, key: str) -> Iterator[str]:
    """Patterns of data files: below the working directory, or in the repository that ``path`` names."""
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[object, object]", node).items():
            yield from _file_problems(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from _file_problems(value, f"{key}[{index}]")
    elif node not in (None, MISSING):
        if not (isinstance(node, str) and is_relative(node)):
            yield f"{key}: {node!r} is not a pattern of files below the working directory"
        elif leaves(node) or any(map(leaves, glob.iglob(node, recursive=True))):  # noqa: PTH207  # keeps the pattern's own form
            yield f"{key}: {node!r} leads through a link out of the working directory"


def is_relative(pattern: str) -> bool:
    """Whether a pattern stays below its start: no URL, no reference, no ``..``."""
    return not ({":", "\\", "$"} & set(pattern) or is_elsewhere(pattern))


def is_elsewhere(text: str) -> bool:
    """Whether a text, read as a path, is absolute or contains ``..``."""
    return (
        text.startswith(("/", "\\", "~"))
        or ".." in re.split(r"[\\/]", text)
        or ADDRESS.match(text) is not None
    )


def leaves(path: str) -> bool:
    """Whether a relative path leads out of the working directory, links resolved."""
    start = Path.cwd()
    try:
        return not (start / path).resolve().is_relative_to(start.resolve())
    except (OSError, RuntimeError):  # a cycle of links, or an impossible file name
        return True
