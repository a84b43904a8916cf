"""Finished runs for the job ``compare``: their config and their metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xlm.core.config.differences import Flat, flatten
from xlm.core.config.errors import XLMError
from xlm.core.config.recorded import read_config
from xlm.core.config.run_files import CONFIG, METRICS, VERSIONS
from xlm.core.config.texts import read_json
from xlm.core.saving.versions import is_unfinished

HARMLESS = (
    "seed", "job_name", "job_type", "output_dir", "ckpt_path", "show_generations",
    "show_probabilities", "logger", "hub", "vocab",
    "callbacks.progress", "callbacks.validation_report", "callbacks.learning_rate",
    "callbacks.last_checkpoint", "callbacks.samples", "callbacks.throughput", "callbacks.gradient_norm",
    "callbacks.memory", "callbacks.thinning",
)  # fmt: skip
"""Keys that do not distinguish settings: names, observers of a run, and values derived from other keys.

For ``ckpt_path`` see ``xlm.eval.compare.settings_of``.
"""
PARTS = ("eval", "generate")
"""Folders inside a run's, with one folder per evaluation."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]

    @property
    def task(self) -> str:
        """Name of the data set."""
        return str(self.config["task"]["name"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.config["seed"])

    @property
    def setting(self) -> Flat:
        """The part of the config that distinguishes settings, by dotted key."""
        return {key: value for key, value in flatten(self.config) if not _is_harmless(key)}


def _is_harmless(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in HARMLESS)


def read_runs(patterns: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read the runs of names and patterns of folders, in this order.

    Returns:
        The runs, and a note for each folder of a pattern without results.

    Raises:
        XLMError: If no folder of the patterns has results, or a run named in full has none.
    """
    patterns = [pattern for pattern in patterns if pattern]
    if not patterns:
        raise XLMError("runs: missing. Set the runs: 'runs=[runs/first_s*,runs/other]'")
    runs: dict[Path, Run] = {}
    left_out: list[str] = []
    for part in patterns:
        folders, is_pattern = find(part)
        for folder in folders:
            lack = what_is_missing(folder)
            if lack and not is_pattern:
                raise XLMError(
                    f"runs: {folder} has no {lack}. Train it to the end, or evaluate it (job_type=eval) and "
                    "name the folder of the evaluation."
                )
            if lack:
                left_out.append(f"{folder} is skipped: no {lack}")
            else:
                runs[folder] = read_run(folder)
    if not runs:
        raise XLMError(f"runs: nothing in {', '.join(patterns)} has results. " + "; ".join(left_out))
    return list(runs.values()), left_out


def find(part: str) -> tuple[list[Path], bool]:
    """Folders of a name or pattern, and whether it is a pattern.

    Raises:
        XLMError: If there are none.
    """
    here = Path(part).expanduser()
    if here.is_dir():
        return [here], False
    found = Path(here.anchor).glob(str(here.relative_to(here.anchor)))
    folders = sorted(path for path in found if path.is_dir())
    if not folders:
        raise XLMError(f"runs: there is no folder {part}")
    return folders, True


def what_is_missing(folder: Path) -> str:
    """What a folder lacks to be a finished run; empty if it is one."""
    lacking = [name for name in (CONFIG, METRICS) if not (folder / name).is_file()]
    if not lacking and is_unfinished(folder):
        return f"end in its {VERSIONS}: it is still running, or was interrupted"
    return lacking[0] if lacking else ""


def read_run(folder: Path) -> Run:
    """Read the results of a run (or of one of its ``eval`` folders) and its config.

    Raises:
        XLMError: If a file is damaged, or not that of a run.
    """
    config = _mapping(folder / CONFIG, ("seed", "task"))
    metrics = _mapping(folder / METRICS, ())
    return Run(
        folder=folder,
        name=(folder.parents[1] if folder.parent.name in PARTS else folder).name,
        config=config,
        metrics={name: float(value) for name, value in metrics.items() if name.startswith("test/")},
    )


def _mapping(path: Path, needs: Sequence[str]) -> dict[str, Any]:
    try:
        found: object = (read_json if path.suffix == ".json" else read_config)(path, str(path))
    except XLMError as error:
        raise XLMError(f"runs: {error}. Remove this run, or run it again") from error
    if not isinstance(found, dict) or any(key not in found for key in needs):
        what = f"without {' or '.join(needs)}" if isinstance(found, dict) else "no mapping"
        raise XLMError(f"runs: {path} is not a record of a run ({what})")
    return cast("dict[str, Any]", found)
