"""Checks of sharded checkpoints (``torch.distributed.checkpoint``) before torch unpickles them.

Their table of contents ``.metadata`` is a pickle, and so is every value in them that is not a tensor; torch
executes both. Here an unpickler that allows torch's own classes only reads the table, and ``torch.load`` with
``weights_only`` reads each such value.
"""

import io
import pickle
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from typing_extensions import override

CONTENTS = ".metadata"
KNOWN = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    **{module: {"PosixPath", "WindowsPath"} for module in ("pathlib", "pathlib._local")},
}  # fmt: skip
"""Classes of a table of contents, besides data types; their construction has no side effects."""
LONGEST_LIST = 2**20
"""Maximum length of a list that the table may request."""


class _ForeignError(Exception):
    """A defect of a folder."""


class _TableUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name in KNOWN.get(module_name, ()):
            return getattr(import_module(module_name), global_name)
        if module_name == "torch" and isinstance(found := getattr(torch, global_name, None), torch.dtype):
            return found
        raise _ForeignError(
            f"its {CONTENTS} names {module_name}.{global_name}, which is not part of a checkpoint"
        )


def mistake(folder: Path) -> str | None:
    """Explain why a checkpoint is unsafe for torch; None if it holds tensors and plain values only.

    Reads the table of contents and every value that is not a tensor. Executes nothing.
    """
    try:
        table = _read_table(folder / CONTENTS)
        _check_table(table)
        sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
        _check_sizes(table.state_dict_metadata.values(), sum(sizes.values()))
        for index, info in cast("Mapping[Any, Any]", table.storage_data).items():
            _check_place(info, sizes)
            if isinstance(table.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
                _check_value(folder / info.relative_path, info.offset, info.length, index.fqn)
    except _ForeignError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # a foreign table can fail in any way
        return f"its {CONTENTS} is damaged ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def _read_table(file: Path) -> Metadata:
    with file.open("rb") as stream:
        table = _TableUnpickler(stream).load()
    if not isinstance(table, Metadata):
        raise _ForeignError(f"its {CONTENTS} holds a {type(table).__name__}")
    return table


def _check_table(table: Metadata) -> None:
    entries = cast("Mapping[str, object]", table.state_dict_metadata)
    for name, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata | BytesStorageMetadata):
            raise _ForeignError(f"its {CONTENTS} describes {name} as a {type(entry).__name__}")
    for path in (table.planner_data or {}).values():
        # torch extends a list to this length.
        if any(isinstance(part, int) and not 0 <= part < LONGEST_LIST for part in path):
            raise _ForeignError(f"its {CONTENTS} requests the list {path}")


def _check_sizes(entries: Iterable[object], on_disk: int) -> None:
    """Limit the size, since torch allocates every tensor before it reads one."""
    tensors = [entry for entry in entries if isinstance(entry, TensorStorageMetadata)]
    needed = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    if needed > on_disk:
        raise _ForeignError(
            f"its {CONTENTS} describes {needed:,} bytes of tensors, its files have {on_disk:,}"
        )


def _check_place(info: Any, sizes: Mapping[str, int]) -> None:
    name = info.relative_path
    if name not in sizes:
        raise _ForeignError(f"its {CONTENTS} names the file {name!r}, which is not in it")
    if not 0 <= info.offset <= info.offset + info.length <= sizes[name]:
        raise _ForeignError(f"its {CONTENTS} names bytes that {name} does not have")
    if info.transform_descriptors:
        raise _ForeignError(f"its {CONTENTS} requests the transform {info.transform_descriptors} of {name}")


def _check_value(file: Path, offset: int, length: int, name: str) -> None:
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(length)
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _ForeignError(f"its value {name} is more than plain values") from error
