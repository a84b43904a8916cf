"""Training curves of runs, from the tables of the CSV logger."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from xlm.core.config.run_files import CSV
from xlm.eval.finished_runs import Run
from xlm.eval.tables import Summary, summary

AXES = {
    "optimizer steps": "step",
    "training tokens": "throughput/tokens",
    "training seconds": "throughput/seconds",
}
"""Columns of the horizontal axes."""
Curve = list[tuple[float, Summary]]
Points = list[tuple[float, float]]


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
            places = [table[step][0] for table in tables.values()]
            values = {name: table[step][1] for name, table in tables.items()}
            curve.append((sum(places) / len(places), summary(values)))
        if len(curve) > 1:
            found[label] = curve
    return found


def _points(folder: Path, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Place on the axis and value of the metric, by step; later tables replace earlier ones."""
    values: dict[int, float] = {}
    places: dict[int, float] = {}
    for file in sorted((folder / CSV).glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with file.open(encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table):
                if not (step := row.get("step")):
                    continue
                if text := row.get(metric):
                    values[int(step)] = float(text)
                if text := row.get(axis):
                    places[int(step)] = float(text)
    known = sorted(places.items())
    return {
        step: (place, value)
        for step, value in sorted(values.items())
        if (place := _interpolated(known, step)) is not None
    }


def _interpolated(known: Sequence[tuple[int, float]], step: int) -> float | None:
    """The value at a step between two known ones, or at one; None outside of them."""
    before = [pair for pair in known if pair[0] <= step]
    after = [pair for pair in known if pair[0] >= step]
    if not before or not after:
        return None
    (first, low), (last, high) = before[-1], after[0]
    return low if first == last else low + (high - low) * (step - first) / (last - first)
