"""Checkpoint files: written atomically, verified before use, rejected if their format is too new.

A checkpoint is the zip archive of ``torch.save``. Its records have checksums and its table of contents is
at the end, so a partial file has no table, and damage is found without a file beside it. A checkpoint that is
a folder of shards has a file with their checksums.
"""

import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from xlm.core.config.errors import XLMError
from xlm.core.config.format import FORMAT_VERSION
from xlm.core.config.integrity import damaged_files, describe_files, read_record
from xlm.core.saving import sharded_files

FORMAT_KEY = "xlm_format_version"
"""Key of a checkpoint's version; later versions are rejected. Versions 1 and 2 have the same content."""
LAST = "last.ckpt"
"""The checkpoint that training normally resumes from."""
PREVIOUS = "previous.ckpt"
"""The previous ``last.ckpt``."""
SHARDED_REST = "meta.pt"
"""In a checkpoint that is a folder, the file that Lightning writes beside the shards."""
CHECKSUMS = "checksums.json"
"""In a checkpoint that is a folder, size and checksum of each of its files."""
NO_CHECKSUMS = "has no checksums, so that damage inside it would go unnoticed"
PROBE = 2**20
"""Bytes to write in order to reproduce a failed write."""
DAMAGED_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # a flipped bit may say that a record is encrypted or compressed
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint IO, with writes that survive a kill or a power cut.

    Lightning writes to the system's temporary folder and moves the file, which is a copy if that folder is
    on another file system, and does not flush it to disk.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if "://" in str(path):  # an object store, which writes whole objects
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_atomically(Path(path), lambda part: torch.save(checkpoint, part))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path, flush the file to disk, and rename it to ``path``.

    Args:
        path: Final path. A replaced ``last.ckpt`` is kept as ``previous.ckpt``.
        write: Receives the path of a temporary file in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # a partial one is overwritten the next time
    try:
        _write_or_say_why(part, write)
        _wait_for_disk(part)
        if path.name == LAST and path.exists():
            if path.with_name(PREVIOUS).is_dir():  # a strategy that wrote folders was used before
                remove(path.with_name(PREVIOUS))
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _wait_for_disk(path.parent)


def _write_or_say_why(part: Path, write: Callable[[Path], object]) -> None:
    """Write; torch hides the error of the operating system, so a second write reproduces it.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    try:
        try:
            write(part)
        except RuntimeError:
            with part.open("ab") as file:
                file.write(b"\0" * PROBE)
            raise
    except OSError as error:
        error.filename = error.filename or str(part)
        raise


def replace_folder(part: Path, path: Path) -> None:
    """Move a complete folder to ``path``. A replaced ``last.ckpt`` is kept as ``previous.ckpt``.

    A kill in between leaves the old one beside ``path`` or the new one as ``part``.
    """
    record = describe_files(part, [file.name for file in part.iterdir()])
    write_text_atomically(part / CHECKSUMS, json.dumps(record))
    for file in part.iterdir():
        _wait_for_disk(file)
    old = path.with_name(PREVIOUS if path.name == LAST else f".{path.name}.old")
    if path.exists():
        remove(old)
        path.replace(old)
    part.replace(path)
    if path.name != LAST:
        remove(old)
    _wait_for_disk(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def _wait_for_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint; None if it is intact. Reads all of it once."""
    if path.is_dir():
        return _damage_of_folder(path)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except DAMAGED_ARCHIVE as error:
        return f"it is truncated or not a checkpoint ({_first_line(error)})"
    return None if broken is None else f"the checksum of its record {broken} is wrong"


def has_checksums(path: Path) -> bool:
    """Whether :func:`damage` would notice a flipped bit."""
    if path.is_dir():
        return (path / CHECKSUMS).is_file()
    try:
        with path.open("rb") as file:
            begins_as_archive = file.read(4) == b"PK\3\4"
    except OSError:  # the next reader reports it
        return False
    return begins_as_archive or zipfile.is_zipfile(path)  # either of the two may be damaged


def _damage_of_folder(path: Path) -> str | None:
    """Damage of a folder of shards: their table of contents is written last but one, the checksums last."""
    lacking = [name for name in (".metadata", SHARDED_REST) if not (path / name).is_file()]
    if lacking:
        return f"it is incomplete: it lacks {' and '.join(lacking)}"
    if (path / CHECKSUMS).is_file():  # else Lightning wrote it, without XLM's strategy
        record = read_record(path / CHECKSUMS)
        if record is None:
            return f"its {CHECKSUMS} is damaged"
        if wrong := list(damaged_files(path, record)):
            return f"it has changed since it was written: {', '.join(wrong)}"
    return sharded_files.mistake(path)


def read(path: Path, *, allow_pickle: bool = False, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only.

    Args:
        path: The file.
        allow_pickle: Allow any Python object in it: the file can then run any code.
        lazily: Map tensors from the file instead of reading them; their checksums are not verified.

    Raises:
        XLMError: If the file is missing, damaged, too new, or holds objects of unknown classes.
    """
    if not path.is_file():
        raise XLMError(f"ckpt_path: there is no file {path}")
    if not lazily and has_checksums(path) and (reason := damage(path)) is not None:
        raise XLMError(f"ckpt_path: {path} is damaged: {reason}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=lazily or None)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise XLMError(
                f"ckpt_path: {path} holds more than tensors and plain values. Loading it would run code of "
                "its author. If you trust it: allow_pickle=true"
            ) from error
        raise XLMError(f"ckpt_path: {path} is not a readable checkpoint: {_first_line(error)}") from error
    except Exception as error:  # a pickle can fail in any way
        raise XLMError(f"ckpt_path: {path} is not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise XLMError(f"ckpt_path: {path} is not a checkpoint: it holds a {type(content).__name__}")
    _check_version(path, cast("dict[str, Any]", content).get(FORMAT_KEY, FORMAT_VERSION))
    return cast("dict[str, Any]", content)


class TooNewError(XLMError):
    """A checkpoint of a later version, which cannot be read."""


def _check_version(path: Path, version: object) -> None:
    if type(version) is not int or version < 1:
        raise XLMError(
            f"ckpt_path: {path} is not a checkpoint of XLM: its {FORMAT_KEY} is {version!r}, not a number"
        )
    if version > FORMAT_VERSION:
        raise TooNewError(
            f"ckpt_path: {path} has format version {version}, this xlm-core reads up to {FORMAT_VERSION}. "
            "Update xlm-core."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
