"""Training curves of runs, from the tables of the CSV logger."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from xlm.core.config.run_files import CSV
from xlm.eval.finished_runs import Run
from xlm.eval.tables import Summary, summary

AXES = {
    "optimizer steps": "step",
    "training tokens": "training/tokens",
    "training seconds": "training/seconds",
}
"""Columns of the horizontal axes."""
Curve = list[tuple[float, Summary]]


def curves(members: Mapping[str, Sequence[Run]], metric: str, axis: str) -> dict[str, Curve]:
    """The curve of each setting: mean and interval over its seeds at the steps that all of them have.

    Args:
        members: The seeds of each setting.
        metric: A validation metric, such as ``val/lm/nll``.
        axis: A column of :data:`AXES`.
    """
    found: dict[str, Curve] = {}
    for label, runs in members.items():
        tables = {str(run.folder): _points(run.folder, metric, axis) for run in runs}
        if not all(tables.values()):
            continue
        steps = sorted(set.intersection(*(set(table) for table in tables.values())))
        curve: Curve = []
        for step in steps:
            positions = [table[step][0] for table in tables.values()]
            values = {name: table[step][1] for name, table in tables.items()}
            curve.append((sum(positions) / len(positions), summary(values)))
        if len(curve) > 1:
            found[label] = curve
    return found


def _points(folder: Path, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Position on the axis and value of the metric, by step; later tables replace earlier ones."""
    found: dict[int, tuple[float, float]] = {}
    for file in sorted((folder / CSV).glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with file.open(encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table):
                position, value = row.get(axis), row.get(metric)
                if position and value:
                    # Lightning's column of steps counts from 0.
                    found[int(row["step"])] = float(position) + (axis == "step"), float(value)
    return dict(sorted(found.items()))
