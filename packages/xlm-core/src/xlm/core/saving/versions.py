"""Reads ``versions.json``, which ``xlm.core.saving.run_record`` writes; does not import torch."""

import json
from pathlib import Path
from typing import Any, cast

from xlm.core.config.run_files import VERSIONS


def read_versions(path: Path) -> dict[str, Any]:
    """The record, or the text of an unreadable file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found: object = json.loads(text)
    except ValueError:
        found = None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {"unreadable": text}


def is_unfinished(folder: Path) -> bool:
    """Whether the folder's job has started and not ended."""
    path = folder / VERSIONS
    return path.is_file() and read_versions(path).get("ended", "") is None
