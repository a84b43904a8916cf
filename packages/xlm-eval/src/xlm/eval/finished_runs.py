"""Finished runs for the job ``compare``: their config, their metrics, and the card if there is one."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
    "show_probabilities", "trace", "logger", "hub", "vocab",
    "callbacks.progress", "callbacks.validation_report", "callbacks.learning_rate",
    "callbacks.last_checkpoint", "callbacks.samples", "callbacks.throughput", "callbacks.gradient_norm",
    "callbacks.memory", "callbacks.thinning",
)  # fmt: skip
"""Keys that do not distinguish settings: names, observers of a run, and values derived from other keys.

For ``ckpt_path`` see ``xlm.eval.tables.settings_of``.
"""
CARD = "card.json"
REPLICATES = "replicates.json"
"""Metrics in each replicate of the bootstrap over rows; a constant one has a single value."""
LARGEST_CARD, LARGEST_REPLICATES = 2**22, 2**26
"""Size limits in bytes."""
DEPTHS = {1: ("eval", "generate"), 2: ("frontier",)}
"""Folders inside a run's with one folder per evaluation, by the number of folders between these and them."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    """By name, such as ``test/lm/nll``; those that only the card has are included."""
    card: Mapping[str, Any] | None
    """The card; None if the run was made without this package."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % intervals over rows, by name without ``test/``."""

    def replicates(self) -> dict[str, Sequence[float]]:
        """Values of each metric in the replicates of the bootstrap over rows, by name without ``test/``."""
        path = self.folder / REPLICATES
        if self.card is None or not path.is_file():
            return {}
        found = cast("dict[str, list[float]]", read_json(path, str(path), largest=LARGEST_REPLICATES))
        number = max((len(values) for values in found.values()), default=0)
        return {name: values * number if len(values) == 1 else values for name, values in found.items()}

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
    folders = sorted((path for path in found if path.is_dir()), key=_in_order_of_numbers)
    if not folders:
        raise XLMError(f"runs: there is no folder {part}")
    return folders, True


def _in_order_of_numbers(path: Path) -> list[tuple[int, str]]:
    """A key by which 8 precedes 64."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


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
    card = _mapping(folder / CARD, ("loaders",)) if (folder / CARD).is_file() else None
    more = dict(_card_values(card)) if card is not None else {}
    return Run(
        folder=folder,
        name=_name(folder),
        config=config,
        metrics={
            **{f"test/{name}": float(entry["value"]) for name, entry in more.items()},
            **{name: float(value) for name, value in metrics.items() if name.startswith("test/")},
        },
        card=card,
        intervals={name: (entry["low"], entry["high"]) for name, entry in more.items() if "low" in entry},
    )


def _card_values(card: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Value and interval of each metric of a card, by its name without ``test/``, and its costs."""
    for loader, found in card["loaders"].items():
        for likelihood in found["likelihood"]:
            prefix = f"{loader}/{'sampler_' if likelihood['of'] == 'sampler' else ''}"
            for name in ("nll", "nll_per_token", "nll_per_byte", "perplexity", "kl"):
                if likelihood.get(name) is not None:
                    yield f"{prefix}{name}", likelihood[name]
            if likelihood["bits_per_byte"] is not None:
                yield f"{prefix}bits_per_byte", {"value": likelihood["bits_per_byte"]}
        texts = found.get("generation", {})
        for name, entry in texts.get("metrics", {}).items():
            yield f"{loader}/{name}", entry
        if rate := texts.get("speed", {}).get("sequences_per_second"):
            yield f"{loader}/seconds_after_first_batch", {"value": 1 / rate}
    for name, total in (card.get("training") or {}).items():
        yield f"training/{name}", {"value": total}
    if memory := card["machine"].get("peak_memory"):
        yield f"job/peak_{memory['of']}_megabytes", {"value": memory["megabytes"]}


def _read(path: Path) -> object:
    if path.suffix != ".json":
        return read_config(path)
    return read_json(path, str(path), largest=LARGEST_CARD)


def _name(folder: Path) -> str:
    """Name of the run that a folder with results belongs to."""
    above = list(folder.parents)
    for depth in DEPTHS:
        if len(above) > depth and above[depth - 1].name in DEPTHS[depth]:
            return above[depth].name
    return folder.name


def _mapping(path: Path, needs: Sequence[str]) -> dict[str, Any]:
    try:
        found: object = _read(path)
    except XLMError as error:
        raise XLMError(f"runs: {error}. Remove this run, or run it again") from error
    if not isinstance(found, dict) or any(key not in found for key in needs):
        what = f"without {' or '.join(needs)}" if isinstance(found, dict) else "no mapping"
        raise XLMError(f"runs: {path} is not a record of a run ({what})")
    return cast("dict[str, Any]", found)
