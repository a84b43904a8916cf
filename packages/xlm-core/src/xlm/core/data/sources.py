"""Sources that configs name: data sets of the Hub, and files of this machine in their place.

``source=FILES`` fills in the argument ``local`` of a task's source. A source without this argument, such as a
generator of puzzles, is replaced by ``read_local_copy``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import datasets

from xlm.core.data.local_copy import LocalCopy, is_remote, read_data_files
from xlm.core.data.read_files import FORMATS
from xlm.core.protocols import Row

LOCAL = "local"
"""The argument of a source that ``source=`` fills in."""


def with_local_files(node: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The node of a source that reads local files.

    Args:
        node: The task's own source, plain values.
        path: Files or a folder, absolute.

    Raises:
        XLMError: If there are no such files.
    """
    LocalCopy(path, {})
    if LOCAL in node:
        return {**node, LOCAL: str(path)}
    return {"_target_": "xlm.core.data.read_local_copy", "_partial_": True, "path": str(path)}


def read_local_copy(*, path: str, split: str, streaming: bool = False) -> Iterable[Row]:
    """A source that reads local files; see `LocalCopy` for ``path``.

    Raises:
        XLMError: If a file cannot be read, or there is no such split.
    """
    return LocalCopy(Path(path), {}).read(split, streaming=streaming)


def read_rows(
    *, path: str, split: str, local: str | None = None, streaming: bool = False, **arguments: Any
) -> Iterable[Row]:
    """A source that reads a data set of the Hub, or files.

    Args:
        path: USER/NAME of a repository of data on the Hub, or the format of ``data_files``: text, json, csv,
            parquet.
        split: Rows in the syntax of ``datasets``: ``train[:90%]``.
        local: Files or a folder with a local copy, read instead (see `LocalCopy`); None for none.
        streaming: Whether rows are read on demand.
        arguments: Other arguments of ``datasets.load_dataset``.

    Raises:
        XLMError: If a local file is missing or cannot be read.
    """
    if local is not None:
        return LocalCopy(Path(local), {"path": path, **arguments}).read(split, streaming=streaming)
    if path in FORMATS.values() and not is_remote(arguments.get("data_files")):
        return read_data_files(path=path, split=split, streaming=streaming, **arguments)
    return cast("Iterable[Row]", datasets.load_dataset(path, split=split, streaming=streaming, **arguments))
