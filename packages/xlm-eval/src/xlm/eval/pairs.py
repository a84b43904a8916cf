"""Which numbers of two runs are comparable, and paired intervals of their differences."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlm.core.config.differences import flatten
from xlm.eval.finished_runs import Run

TAIL = 0.025
"""Probability outside of an interval, on each side."""
PER_TOKEN = ("nll_per_token", "perplexity", "bits_per_token")
"""Metrics whose unit is the token."""
OF_TIME = ("seconds_per_sequence", "seconds_after_first_batch", "seconds")
CONDITIONS = ("device", "dtype", "threads", "processes")
"""Conditions of ``seconds``, in a card."""


@dataclass(frozen=True)
class Difference:
    """A run's metric minus that of another on the same rows, with its paired 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        mark = "" if self.low <= 0 <= self.high else " *"
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}]{mark}"


@dataclass
class Marks:
    """What is not comparable in a table."""

    notes: list[str] = field(default_factory=list[str])
    loaders: set[str] = field(default_factory=set[str])
    """Loaders with other rows, or another judge."""
    metrics: set[str] = field(default_factory=set[str])
    """Last parts of the names of metrics with another unit or other conditions."""

    def has(self, metric: str) -> bool:
        """Whether the numbers of a metric, such as ``lm/nll (exact)``, are not comparable."""
        loader, _, name = metric.partition(" (")[0].rpartition("/")
        return loader in self.loaders or name.removeprefix("sampler_") in self.metrics


def marks(members: Mapping[str, Sequence[Run]]) -> Marks:
    """Find what differs between the settings of a table, which are given by name."""
    found = Marks()
    runs = [(label, run) for label, members in members.items() for run in members]
    with_card = [(label, run) for label, run in runs if run.card is not None]
    if len(with_card) < len(runs):
        without = dict.fromkeys(label for label, run in runs if run.card is None)
        found.notes.append(f"Without a card, so that the test rows are not known: {', '.join(without)}.")
    for loader in dict.fromkeys(name for _, run in with_card for name in _card(run)["loaders"]):
        here = [(label, run) for label, run in with_card if loader in _card(run)["loaders"]]
        if note := _note(f"{loader}: the test rows differ", here, lambda run, name=loader: _rows(run, name)):
            found.loaders.add(loader)
            found.notes.append(note)
        generating = [pair for pair in here if "generation" in _card(pair[1])["loaders"][loader]]
        if note := _note(f"{loader}: the metrics or their judge differ", generating, _judges):
            found.loaders.add(loader)
            found.notes.append(note)
    if note := _note("the tokenizers differ, so compare bits per byte", with_card, _tokenizer):
        found.metrics |= set(PER_TOKEN)
        found.notes.append(note)
    if note := _note("the conditions of seconds differ", with_card, _conditions):
        found.metrics |= set(OF_TIME)
        found.notes.append(note)
    return found


def _note(what: str, runs: Sequence[tuple[str, Run]], key: Callable[[Run], object]) -> str | None:
    """A line with the runs of each value of ``key``; None if they agree."""
    groups: dict[object, list[str]] = {}
    for label, run in runs:
        groups.setdefault(key(run), []).append(label)
    if len(groups) < 2:
        return None
    return f"{what}: {' | '.join(', '.join(dict.fromkeys(labels)) for labels in groups.values())}."


def _card(run: Run) -> Mapping[str, Any]:
    assert run.card is not None
    return run.card


def _rows(run: Run, loader: str) -> object:
    """Identity of the rows of a loader; texts without rows are those of their seeds."""
    rows = _card(run)["loaders"][loader]["rows"]
    return rows["hash"] or (rows["number"], rows["split"])


def _judges(run: Run) -> object:
    return tuple(
        (key, repr(value)) for key, value in sorted(flatten(run.config["task"].get("metrics") or {}))
    )


def _tokenizer(run: Run) -> object:
    return _card(run)["tokenizer"]


def _conditions(run: Run) -> object:
    card = _card(run)
    sizes = tuple(
        (name, loader["batch_size"])
        for name, loader in sorted(card["loaders"].items())
        if "generation" in loader
    )
    return (*(card["machine"][name] for name in CONDITIONS), sizes)


def differences(first: Run, second: Run) -> tuple[dict[str, Difference], list[str]]:
    """The second run minus the first, for each metric of the rows.

    Returns:
        Differences by metric, and why there is none for other loaders.
    """
    refused = dict(_refused(first, second))
    here, there = first.replicates(), second.replicates()
    found: dict[str, Difference] = {}
    for name in sorted(here.keys() & there.keys()):
        loader, _, metric = name.rpartition("/")
        if loader in refused or f"{loader}/{_of(metric)}" in refused or len(here[name]) != len(there[name]):
            continue
        gaps = sorted(b - a for a, b in zip(here[name], there[name], strict=True))
        value = second.metrics[f"test/{name}"] - first.metrics[f"test/{name}"]
        found[name] = Difference(value, _quantile(gaps, TAIL), _quantile(gaps, 1 - TAIL))
    return found, [f"{loader}: {reason}" for loader, reason in refused.items()]


def _refused(first: Run, second: Run) -> Iterator[tuple[str, str]]:
    """Loaders and likelihoods without a paired interval, and the reason."""
    if first.card is None or second.card is None:
        yield "all", "a run without a card has no intervals over rows"
        return
    loaders = first.card["loaders"]
    for loader in loaders.keys() & second.card["loaders"].keys():
        if _rows(first, loader) != _rows(second, loader):
            yield loader, "other test rows"
            continue
        rows = loaders[loader]["rows"]
        if rows["hash"] is None and first.card["seed"] != second.card["seed"]:
            yield loader, "texts without rows, with other seeds"
            continue
        if "generation" in loaders[loader] and _judges(first) != _judges(second):
            yield loader, "other metrics, or another judge"
            continue
        kinds = [
            {each["of"]: _kind(each) for each in card["loaders"][loader]["likelihood"]}
            for card in (first.card, second.card)
        ]
        for of in kinds[0].keys() & kinds[1].keys():
            if kinds[0][of] != kinds[1][of]:
                yield f"{loader}/{of}", f"likelihoods of two kinds, {kinds[0][of]} and {kinds[1][of]}"


def _kind(likelihood: Mapping[str, Any]) -> str:
    impossible = likelihood["impossible_rows"]
    rows = f" without {impossible} impossible rows" if impossible else ""
    return f"{likelihood['kind']} with the length {likelihood['length']}{rows}"


def _of(metric: str) -> str:
    """What a likelihood's metric belongs to; empty for others."""
    if not metric.removeprefix("sampler_").startswith(("nll", "kl")):
        return ""
    return "sampler" if metric.startswith("sampler_") else "network"


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Quantile of sorted numbers, interpolated."""
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
