"""The plots of a comparison: quality against cost and diversity, and training curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean, listed
from xlm.eval.curves import AXES, curves
from xlm.eval.plot_data import Plot, Point
from xlm.eval.tables import Table

COSTS = {
    "network-evaluations": (("nfe_per_sequence",), "network evaluations per text"),
    "seconds": (("seconds_after_first_batch", "seconds_per_sequence"), "seconds per text"),
    "entropy": (("token_entropy",), "entropy of the tokens of a text, nats"),
}
"""File, metrics of which the first measured one is drawn, and label of the horizontal axes of quality."""
Values = Mapping[str, Mapping[str, str]]
"""By setting: the keys in which settings differ, with their values."""


def quality_of(table: Table, chosen: str | None) -> str | None:
    """The metric of the vertical axis: the chosen one, else the monitored one if it is of generated texts.

    Raises:
        XLMError: If the chosen metric was not measured.
    """
    if chosen is not None:
        if chosen not in table.metrics:
            known = [name for name in table.metrics if _loader_has(table, name, "nfe_per_sequence")]
            raise XLMError(
                f"quality: no run has {chosen}.{did_you_mean(chosen, known)}{listed(known, 'Measured:')}"
            )
        return chosen
    [first, *_] = table.members.values()
    monitored = str(first[0].config.get("monitor", "")).partition("/")[2]
    return (
        monitored
        if monitored in table.metrics and _loader_has(table, monitored, "nfe_per_sequence")
        else None
    )


def _loader_has(table: Table, metric: str, other: str) -> bool:
    return f"{metric.rpartition('/')[0]}/{other}" in table.metrics


def plots(table: Table, task: str, quality: str | None) -> Iterator[tuple[str, Plot]]:
    """Name of the file and content of each plot that the runs have numbers for."""
    if quality is not None:
        loader = quality.rpartition("/")[0]
        for file, (metrics, label) in COSTS.items():
            measured = (metric for metric in metrics if f"{loader}/{metric}" in table.metrics)
            series, keys = _series(table, f"{loader}/{next(measured, '')}", quality)
            if series:
                notes = f"at the points: {', '.join(keys)}" if keys else None
                yield f"quality-{file}", Plot(task, label, quality, series, "points", notes)
    [first, *_] = table.members.values()
    monitored = str(first[0].config.get("monitor", ""))
    for label, column in AXES.items():
        found = curves(table.members, monitored, column)
        if found:
            series = {
                name: [Point(x, each.mean, *each.ends) for x, each in curve] for name, curve in found.items()
            }
            file = f"training-{label.split()[-1]}"
            yield file, Plot(task, label, monitored, series, "curves")


def _series(table: Table, metric: str, quality: str) -> tuple[dict[str, list[Point]], list[str]]:
    """Series of settings that differ in one key, along which the horizontal axis varies most.

    Returns:
        The points of each series, and the keys whose values are their notes.
    """
    across, up = table.metrics.get(metric, {}), table.metrics[quality]
    labels = [label for label in table.members if label in across and label in up]
    names = {label: _name_of_runs(table, label) for label in labels}
    places = {label: across[label].mean for label in labels}
    found: dict[str, list[Point]] = {}
    noted: list[str] = []
    for name in dict.fromkeys(names.values()):
        group = [label for label in labels if names[label] == name]
        along, fixed = _split(group, table.differences, places)
        noted += [] if along is None else [_end(along)]
        for label in group:
            values = table.differences[label]
            words = [f"{_end(key)}={values[key]}" for key in fixed]
            note = "" if along is None else values[along]
            point = Point(places[label], up[label].mean, *up[label].ends, note)
            found.setdefault(", ".join([name, *words]), []).append(point)
    ordered = {name: sorted(points, key=lambda point: point.x) for name, points in found.items()}
    return ordered, list(dict.fromkeys(noted))


def _name_of_runs(table: Table, label: str) -> str:
    """Name of the runs of a setting without the keys that distinguish it."""
    members = table.members[label]
    return members[0].name if len({run.name for run in members}) == 1 else label


def _split(group: Sequence[str], values: Values, places: Mapping[str, float]) -> tuple[str | None, list[str]]:
    """Keys in which a group of settings differs: the one along which the places vary most, and others."""
    varying = [key for key in values[group[0]] if len({values[label][key] for label in group}) > 1]
    if not varying:
        return None, []

    def spread(key: str) -> float:
        lines: dict[tuple[Any, ...], list[float]] = {}
        for label in group:
            rest = tuple(values[label][other] for other in varying if other != key)
            lines.setdefault(rest, []).append(places[label])
        return sum(max(line) - min(line) for line in lines.values())

    along = max(varying, key=spread)
    return along, [key for key in varying if key != along]


def _end(key: str) -> str:
    return key.rpartition(".")[2]
