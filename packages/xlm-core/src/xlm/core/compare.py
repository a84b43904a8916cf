"""The job ``compare``: one table over finished runs, seeds of a setting taken together.

Runs whose configs differ only in ``seed`` and ``job_name`` are one setting: its figures are the mean over
seeds with Student's 95 % interval. Nothing is ranked. A likelihood stands in a row of its own kind (exact or
bound, length modelled or given), so unlike numbers never stand side by side.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from xlm.core.errors import XLMError

LIKELIHOOD = ("nll", "nll_standard_error", "nll_per_token", "perplexity", "bits_per_token")
KIND = ("is_bound", "models_length", "num_draws")
# Two-sided 95 % quantiles of Student's distribution for 1 to 30 degrees of freedom.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
HARMLESS = ("seed", "job_name", "job_type", "output_dir", "ckpt_path", "show_generations")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    name: str
    task: str
    setting: str
    """What of the config tells settings apart."""
    seed: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """A figure of a setting over its seeds."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval; None for a single run."""
    values: dict[str, float]
    """The figure of each run, by name."""

    def __str__(self) -> str:
        interval = "" if self.half_width is None else f" ± {self.half_width:.2g}"
        return f"{self.mean:.4g}{interval}"


def main(arguments: Sequence[str]) -> None:
    """Compare the runs of ``runs=[...]`` and write ``comparison.md`` and ``comparison.json``.

    Raises:
        XLMError: When there is nothing to compare, or a run has no results.
    """
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    if unknown := sorted(given.keys() - {"job_type", "runs", "output_dir"}):
        raise XLMError(f"{unknown[0]}: job_type=compare knows runs=[FOLDER,...] and output_dir=FOLDER only")
    runs = [read_run(folder) for folder in find(given.get("runs", ""))]
    table = summarise(runs)
    text = markdown(table, runs)
    folder = Path(given.get("output_dir", "runs"), "compare", datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f"))
    folder.mkdir(parents=True)
    (folder / "comparison.md").write_text(text)
    (folder / "comparison.json").write_text(json.dumps(as_json(table), indent=2) + "\n")
    print(text)  # noqa: T201
    print(f"files\n  {folder / 'comparison.md'}\n  {folder / 'comparison.json'}")  # noqa: T201


def find(pattern: str) -> list[Path]:
    """Folders that ``[runs/a_*,runs/b]`` names, in this order.

    Raises:
        XLMError: When a pattern names nothing.
    """
    patterns = [part.strip().strip("'\"") for part in pattern.strip().strip("[]").split(",") if part.strip()]
    if not patterns:
        raise XLMError("runs: missing. Name the runs: 'runs=[runs/first_s*,runs/other]'")
    found: list[Path] = []
    for part in patterns:
        here = Path(part)
        folders = sorted(
            path for path in Path(here.anchor).glob(str(here.relative_to(here.anchor))) if path.is_dir()
        )
        if not folders:
            raise XLMError(f"runs: no folder is called {part}")
        found += [folder for folder in folders if folder not in found]
    return found


def read_run(folder: Path) -> Run:
    """Read the results of a run (or of one of its ``eval`` folders) and what made them.

    Raises:
        XLMError: When the folder has no results.
    """
    if not (folder / "metrics.json").is_file() or not (folder / "config.yaml").is_file():
        raise XLMError(
            f"runs: {folder} has no metrics.json beside a config.yaml. Train it to the end, or evaluate it "
            "(job_type=eval) and name the folder of the evaluation."
        )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    figures: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    kept = {key: value for key, value in config.items() if key not in (*HARMLESS, "callbacks", "logger")}
    return Run(
        folder=folder,
        name=(folder.parents[1] if folder.parent.name == "eval" else folder).name,
        task=str(config["task"]["name"]),
        setting=json.dumps(kept, sort_keys=True, default=str),
        seed=int(config["seed"]),
        figures={name: value for name, value in figures.items() if name.startswith("test/")},
    )


Table = dict[str, dict[str, dict[str, Summary]]]
"""Summaries by task, figure and setting."""


def summarise(runs: Sequence[Run]) -> Table:
    """Take the seeds of each setting together.

    Raises:
        XLMError: When a setting was run twice with the same seed, which would count as two.
    """
    settings: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        settings.setdefault((run.task, run.setting), []).append(run)
    table: Table = {}
    for (task, _), members in settings.items():
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(str(run.folder) for run in members)
            raise XLMError(
                f"runs: two runs of one setting have the same seed, so they are no sample: {names}"
            )
        for figure, values in by_figure(members).items():
            table.setdefault(task, {}).setdefault(figure, {})[label(members)] = summary(values)
    return table


def by_figure(members: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Values of each figure by run; the name of a likelihood says of what kind it is."""
    found: dict[str, dict[str, float]] = {}
    for run in members:
        for name, value in run.figures.items():
            loader, _, figure = name.rpartition("/")
            if figure in KIND:
                continue
            kind = f" ({likelihood_kind(run.figures, loader)})" if figure in LIKELIHOOD else ""
            found.setdefault(f"{name.removeprefix('test/')}{kind}", {})[str(run.folder)] = value
    return found


def likelihood_kind(figures: Mapping[str, float], loader: str) -> str:
    """What a loader's likelihood is: exact or an upper bound, of the length too or given the length."""
    bound = figures.get(f"{loader}/is_bound", 0.0)
    kind = "exact" if bound == 0 else "upper bound" if bound == 1 else "partly bound"
    return kind + (", with length" if figures.get(f"{loader}/models_length") == 1 else ", length given")


def label(members: Sequence[Run]) -> str:
    """Name of a setting: that of its runs, ``*`` where they differ."""
    names = [run.name for run in members]
    common = "".join(letters[0] for letters in _while_equal(names))
    return names[0] if len(names) == 1 else f"{common}* ({len(names)} seeds)"


def _while_equal(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))


def summary(values: dict[str, float]) -> Summary:
    """Mean and half of Student's 95 % interval."""
    numbers = list(values.values())
    count, mean = len(numbers), sum(numbers) / len(numbers)
    if count == 1:
        return Summary(mean, None, values)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / (count - 1))
    quantile = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    return Summary(mean, quantile * deviation / math.sqrt(count), values)


def markdown(table: Table, runs: Sequence[Run]) -> str:
    """The tables, one for each task, figures below one another and settings side by side."""
    lines: list[str] = []
    for task, figures in table.items():
        settings = list(dict.fromkeys(name for by_setting in figures.values() for name in by_setting))
        lines += [f"## {task}", "", f"| | {' | '.join(settings)} |", "|---" * (len(settings) + 1) + "|"]
        for figure, by_setting in sorted(figures.items()):
            cells = [str(by_setting[name]) if name in by_setting else "–" for name in settings]
            lines.append(f"| {figure} | {' | '.join(cells)} |")
        lines.append("")
    lines.append("Mean ± half of Student's 95 % interval over seeds; a number alone is a single run.")
    lines.append("Likelihoods of different kinds stand in different rows and cannot be compared.")
    lines += ["", "Runs: " + ", ".join(f"`{run.folder}` (seed {run.seed})" for run in runs), ""]
    return "\n".join(lines)


def as_json(table: Table) -> Mapping[str, Any]:
    """The same for programs, with the value of each run."""
    return {
        task: {
            figure: {
                name: {"mean": found.mean, "half_width_95": found.half_width, "values": found.values}
                for name, found in by_setting.items()
            }
            for figure, by_setting in figures.items()
        }
        for task, figures in table.items()
    }
