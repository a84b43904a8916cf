"""``versions.json``: the environment of a run.

Versions of Python, torch and every XLM package; the git commit of the working directory and of XLM's own
sources; device, processes and threads; start and end; tokens and seconds of a training. ``ended`` is null
while the job runs, and stays null if it was interrupted. Records of earlier starts of the same run are under
``earlier``.
"""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from xlm.core.config.run_files import VERSIONS
from xlm.core.saving.checkpoints import write_text_atomically
from xlm.core.saving.versions import package_versions, read_versions

GIT_SECONDS = 20.0
"""Timeout of git in seconds; a repository on a slow file system is recorded without its state."""


def begin(folder: Path) -> None:
    """Record that a job starts; an earlier record is kept inside."""
    path = folder / VERSIONS
    earlier: list[object] = []
    if path.exists():
        last = read_versions(path)
        earlier = [*cast("list[object]", last.pop("earlier", [])), last]
    record = {
        **package_versions(),
        "git": git_state(Path.cwd()),
        "git_of_xlm": git_state(Path(__file__).parent),
        "started": now(),
        "ended": None,
        "earlier": earlier,
    }
    write_text_atomically(path, json.dumps(record, indent=2) + "\n")


def add(folder: Path, **entries: object) -> None:
    """Add later entries: the device, the totals of a training, the end."""
    path = folder / VERSIONS
    write_text_atomically(path, json.dumps({**read_versions(path), **entries}, indent=2) + "\n")


def end(folder: Path) -> None:
    """Record that the job is done."""
    add(folder, ended=now())


def now() -> str:
    """The time with its zone, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """Commit of the repository around a folder, and whether tracked files differ from it.

    Returns:
        None outside a repository, and without git.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, **({} if changes is None else {"changed": changes != ""})}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # git is missing or does not respond
        return None
    return done.stdout.strip() if done.returncode == 0 else None
