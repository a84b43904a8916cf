"""The recorded generations of runs, grouped by their prompt."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlm.core.config.errors import XLMError
from xlm.core.config.recorded import read_config
from xlm.core.config.run_files import CONFIG, TRACES


@dataclass(frozen=True)
class Recorded:
    """One generation of one run."""

    run: str
    """Name of the run."""
    task: str
    """Name of its task."""
    loader: str
    prompt: str
    text: str
    reference: str
    steps: list[Mapping[str, Any]]
    """Each with ``step``, ``tokens``, ``edited`` and ``edits``."""


def read_traces(folders: Sequence[str]) -> list[list[Recorded]]:
    """Read the recorded generations of runs.

    Args:
        folders: Folders of runs, or of later evaluations.

    Returns:
        The generations on the same prompt side by side, in the order of the first run.

    Raises:
        XLMError: If there is no run, or a run has no traces.
    """
    if not folders:
        raise XLMError("runs: missing. Set the runs: 'runs=[runs/a,runs/b]'")
    groups: dict[tuple[str, str, str, int], list[Recorded]] = {}
    for name in folders:
        seen: dict[tuple[str, str, str], int] = {}
        for found in _of_run(Path(name).expanduser()):
            key = (found.task, found.prompt, found.reference)
            seen[key] = seen.get(key, -1) + 1  # texts without a prompt are matched in their order
            groups.setdefault((*key, seen[key]), []).append(found)
    return list(groups.values())


def _of_run(folder: Path) -> Iterator[Recorded]:
    path = folder / TRACES
    if not folder.is_dir():
        raise XLMError(f"runs: there is no folder {folder}")
    if not path.exists():
        raise XLMError(
            f"runs: {folder} has no {TRACES}. A run writes it with show_generations above 0; for another "
            "one: xlm job_type=generate job_name=NAME experiment=... show_generations=3"
        )
    config = read_config(folder / CONFIG)
    name = str(config["job_name"])
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield Recorded(
            run=name,
            task=str(config["task"]["name"]),
            loader=record["loader"],
            prompt=record["prompt"],
            text=record["text"],
            reference=record["reference"],
            steps=[{**step, "edits": step.get("edits") or _edits(step)} for step in record["steps"]],
        )


def _edits(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edits of a record without them: positions that changed, all shown as writes."""
    return [
        {"kind": "write", "position": place, "token": step["tokens"][place]}
        for place in sorted(step["edited"])
    ]
