"""The cache key of prepared data: a hash of everything that determines them."""

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from datasets.fingerprint import Hasher

from xlm.core.config.schema import TaskSettings
from xlm.core.data.read_files import existing_files
from xlm.core.protocols import Tokenizer

LAYOUT = 3
"""Version of the files of a prepared task."""


def cache_key(
    task: TaskSettings,
    *,
    functions: list[Callable[..., object] | None],
    tokenizer: Tokenizer,
) -> str:
    """Hash of everything that determines the prepared rows.

    Args:
        task: Nodes of the slots, splits, length limit.
        functions: The objects of the slots source, filter and preprocess; the hash covers their code.
        tokenizer: The hash covers its contents, independent of the path it was loaded from.
    """
    covered = {
        "layout": LAYOUT,
        "source": task.source,
        "local files": sorted(local_files(task.source)),
        "splits": task.splits,
        "filter": task.filter,
        "preprocess": task.preprocess,
        "length_limit": task.length_limit.model_dump() if task.length_limit else None,
        "streaming": task.streaming,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "code": [_code(function) for function in functions if function is not None],
    }
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """The tokenizer's own fingerprint, or a hash of the pickled object."""
    own = getattr(tokenizer, "fingerprint", None)
    return own if isinstance(own, str) else Hasher.hash(tokenizer)


def local_files(node: object, key: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, size and modification time of every local file that a config node names.

    A text is included if a file, a folder or files of this pattern exist; the names are relative to the
    text, so that a folder may be moved.
    """
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[str, object]", node).items():
            yield from local_files(value, name)
    elif isinstance(node, list):
        for value in cast("list[object]", node):
            yield from local_files(value, key)
    elif isinstance(node, str) and key != "_target_" and "://" not in node:
        # `path: csv` is a format, even if a folder of this name exists.
        if key not in {"data_files", "data_dir"} and not any(sign in node for sign in "/\\."):
            return
        root = Path(node).expanduser()
        for path in existing_files(node):
            status = path.stat()
            name = str(path.relative_to(root)) if root.is_dir() else path.name
            yield name, status.st_size, status.st_mtime_ns


def _code(function: Callable[..., object]) -> str:
    """Hash of the code of a function or of an object's class, so that an edit changes the key.

    The code of ``datasets`` is excluded: its versions read the same data from a Hub repository.
    """
    while isinstance(function, functools.partial):
        function = cast("functools.partial[object]", function).func
    code = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    if code.__module__.partition(".")[0] == "datasets":
        return code.__qualname__
    try:
        file = inspect.getsourcefile(code)
    except TypeError:
        file = None
    if file is None:
        return code.__qualname__
    return hashlib.sha256(b"".join(path.read_bytes() for path in _source_files(Path(file)))).hexdigest()


def _source_files(file: Path) -> list[Path]:
    """A source file, and the files of its folder that it imports, directly or through each other.

    Not the whole folder, which may hold networks and losses: their edits must not prepare the rows again.
    """
    found = [file]
    for source in found:
        for name in sorted(_imported_names(source)):
            beside = source.with_name(f"{name}.py")
            if beside not in found and beside.is_file():
                found.append(beside)
    return found


def _imported_names(file: Path) -> set[str]:
    """Every part of every name in the import statements of a file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {part for name in names for part in name.split(".")}
