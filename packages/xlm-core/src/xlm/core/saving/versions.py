"""Versions of packages, and ``versions.json``, which ``run_record`` writes; without torch and Lightning."""

import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, cast

from xlm.core.config.run_files import VERSIONS

REPORTED = ("torch", "lightning", "hydra-core", "transformers", "datasets", "numpy")


@cache
def package_versions() -> Mapping[str, str]:
    """Versions of Python, of every XLM package and of the libraries under them, read once in a process."""
    # Each access to the metadata parses a file.
    about = [distribution.metadata for distribution in distributions()]
    found = {entry["Name"]: entry["Version"] for entry in about}
    names = [name for name in found if name.startswith("xlm-") or name in REPORTED]
    return {"python": platform.python_version(), **{name: found[name] for name in sorted(names)}}


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
