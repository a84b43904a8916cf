"""Sizes and checksums of files, written beside them and compared before the files are used.

XXH3 with 128 bits (https://xxhash.com) finds accidental damage; it is not a protection against manipulation.
It reads some GB per second on one core, so whole files are compared, not samples.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import xxhash

ALGORITHM = "xxh3_128"
_PIECE = 2**22


def checksum(file: Path) -> str:
    """Hexadecimal XXH3 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and checksum of files of a folder, by name."""
    return {
        name: {"bytes": (folder / name).stat().st_size, ALGORITHM: checksum(folder / name)}
        for name in sorted(names)
    }


def damaged_files(folder: Path, record: Mapping[str, Any], unread: Iterable[str] = ()) -> Iterator[str]:
    """Describe each file of a folder that has changed since it was written.

    Args:
        folder: The folder.
        record: From :func:`describe_files`.
        unread: Names of files of which only the size is compared.
    """
    unread = set(unread)
    for name, known in record.items():
        file = folder / name
        if not file.is_file():
            yield f"{name} is missing"
        elif (size := file.stat().st_size) != known["bytes"]:
            yield f"{name} has {size:,} bytes, {known['bytes']:,} were written"
        elif name not in unread and checksum(file) != known[ALGORITHM]:
            yield f"the checksum of {name} is wrong"


def parse_record(content: object) -> dict[str, dict[str, Any]] | None:
    """A record of the form of :func:`describe_files`, None for anything else."""
    if not isinstance(content, dict):
        return None
    record = cast("dict[object, object]", content)
    for name, known in record.items():
        if not isinstance(name, str) or not isinstance(known, dict):
            return None
        entry = cast("dict[object, object]", known)
        if not isinstance(entry.get("bytes"), int) or not isinstance(entry.get(ALGORITHM), str):
            return None
    return cast("dict[str, dict[str, Any]]", record)


def read_record(file: Path) -> dict[str, dict[str, Any]] | None:
    """The record in a JSON file, None if it holds something else.

    Raises:
        OSError: If there is no such file.
    """
    try:
        return parse_record(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return None
