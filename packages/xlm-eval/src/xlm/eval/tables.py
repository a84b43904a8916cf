"""Runs as tables: settings side by side, each metric a mean over the seeds of its setting.

Runs whose configs differ only in ``seed``, names and observers are one setting: its metrics are the mean over
seeds with Student's 95 % interval; a single run has the interval over rows of its card. Settings are
distinguished by the keys in which they differ. Nothing is ranked. Likelihoods share a row only if they are
of one kind (exact or bound, length modelled or given), and losses only if they have one class and one set of
arguments, so numbers in a row are comparable.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from xlm.core.config.differences import Flat, differing, flatten, named
from xlm.core.config.entry_points import GENERATION, LOSS, SAMPLER_LIKELIHOOD
from xlm.core.config.errors import XLMError
from xlm.eval.finished_runs import Run

LIKELIHOOD = (
    "nll", "nll_standard_error", "nll_per_token", "perplexity", "bits_per_token", "nll_per_byte",
    "bits_per_byte", "kl",
)  # fmt: skip
KIND = ("is_bound", "models_length", "num_draws")
SAMPLER = "sampler_"
"""Begins the names of the same metrics of a sampler's likelihood, another quantity."""
# Two-sided 95 % quantiles of Student's distribution for 1 to 30 degrees of freedom.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A metric of a setting over its seeds."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval over seeds; None for a single run."""
    values: dict[str, float]
    """The metric of each run, by name."""
    over_rows: tuple[float, float] | None = None
    """The 95 % interval over rows of a single run, from its card."""

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the interval over seeds, else over rows, else the mean itself."""
        if self.half_width is not None:
            return self.mean - self.half_width, self.mean + self.half_width
        return self.over_rows or (self.mean, self.mean)

    def __str__(self) -> str:
        if self.half_width is not None:
            return f"{self.mean:.4g} ± {self.half_width:.2g}"
        rows = "" if self.over_rows is None else f" [{self.over_rows[0]:.4g}, {self.over_rows[1]:.4g}]"
        return f"{self.mean:.4g}{rows}"


@dataclass(frozen=True)
class Table:
    """The settings of one task, side by side."""

    differences: dict[str, dict[str, str]]
    """By setting: the keys in which the settings differ, with their values."""
    metrics: dict[str, dict[str, Summary]]
    """By metric and setting."""
    members: dict[str, list[Run]]
    """The runs of each setting: its seeds."""


def settings_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each setting: its seeds.

    Evaluations of several checkpoints of one run share a seed, so ``ckpt_path`` distinguishes them; if the
    seeds differ, the checkpoints are those of the seeds.

    Raises:
        XLMError: If a setting was run twice with the same seed.
    """
    settings = _grouped(runs, lambda run: run.setting)
    parts = [
        part
        for members in settings
        for part in (
            [members]
            if _have_own_seeds(members)
            else _grouped(members, lambda run: {"ckpt_path": run.config.get("ckpt_path")})
        )
    ]
    for members in parts:
        if not _have_own_seeds(members):
            names = ", ".join(str(run.folder) for run in members)
            raise XLMError(
                f"runs: two runs of one setting have the same seed, so they are not independent: {names}"
            )
    return parts


def _have_own_seeds(members: Sequence[Run]) -> bool:
    return len({run.seed for run in members}) == len(members)


def _grouped(runs: Sequence[Run], key: Callable[[Run], Flat]) -> list[list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(key(run), sort_keys=True, default=str), []).append(run)
    return list(found.values())


def summarise(runs: Sequence[Run]) -> dict[str, Table]:
    """Aggregate the seeds of each setting, for each task.

    Raises:
        XLMError: If a setting was run twice with the same seed.
    """
    tables: dict[str, Table] = {}
    for task in dict.fromkeys(run.task for run in runs):
        settings = settings_of([run for run in runs if run.task == task])
        flat = [{**members[0].setting, **_checkpoint(members)} for members in settings]
        rows = differing(flat)
        labels = named([label(members) for members in settings], rows)
        losses = loss_names([members[0] for members in settings])
        metrics: dict[str, dict[str, Summary]] = {}
        for name, loss, members in zip(labels, losses, settings, strict=True):
            for metric, values in by_metric(members, loss).items():
                metrics.setdefault(metric, {})[name] = replace(
                    summary(values), over_rows=_over_rows(members, metric)
                )
        differences = {
            name: {key: values[number] for key, values in rows.items()} for number, name in enumerate(labels)
        }
        tables[task] = Table(differences, metrics, dict(zip(labels, settings, strict=True)))
    return tables


def _over_rows(members: Sequence[Run], metric: str) -> tuple[float, float] | None:
    """The interval of a single run; ``metric`` may end in a kind."""
    return members[0].intervals.get(metric.partition(" (")[0]) if len(members) == 1 else None


def _checkpoint(members: Sequence[Run]) -> Flat:
    """The checkpoint of a setting that is one evaluation; seeds have one each."""
    return {"ckpt_path": members[0].config.get("ckpt_path")} if len(members) == 1 else {}


def loss_names(runs: Sequence[Run]) -> list[str]:
    """Label of the loss of each run: its class, with the arguments in which losses of this class differ."""
    nodes = [dict(flatten(run.config.get("loss", {}))) for run in runs]
    classes = [str(node.get("_target_", "")) for node in nodes]
    names = list(classes)
    for target in set(classes):
        places = [place for place, found in enumerate(classes) if found == target]
        for key, values in differing([nodes[place] for place in places]).items():
            for place, value in zip(places, values, strict=True):
                names[place] += f", {key}={value}"
    return names


def by_metric(members: Sequence[Run], loss: str) -> dict[str, dict[str, float]]:
    """Values of each metric by run; the name of a likelihood or of a loss includes its kind."""
    found: dict[str, dict[str, float]] = {}
    for run in members:
        for name, value in run.metrics.items():
            loader, _, metric = name.rpartition("/")
            measure = metric.removeprefix(SAMPLER)
            if measure in KIND:
                continue
            if measure in LIKELIHOOD:
                kind = likelihood_kind(run.metrics, f"{loader}/{metric.removesuffix(measure)}")
            else:
                kind = loss if _is_of_the_loss(run, loader, metric) else ""
            found.setdefault(f"{name.removeprefix('test/')}{f' ({kind})' if kind else ''}", {})[
                str(run.folder)
            ] = value
    return found


def _is_of_the_loss(run: Run, loader: str, metric: str) -> bool:
    """Whether a metric has the unit of the family's own loss: the loss, and all of a loader without texts."""
    loaders = run.config.get("datamodule", {}).get("test", {})
    uses = loaders.get(loader.removeprefix("test/"), {}).get("uses", [GENERATION])
    return metric == LOSS or not {GENERATION, SAMPLER_LIKELIHOOD} & set(uses)


def likelihood_kind(metrics: Mapping[str, float], prefix: str) -> str:
    """Kind of a likelihood: exact or an upper bound, including the length or conditioned on it.

    Args:
        metrics: The metrics of a run.
        prefix: What stands before ``is_bound`` in their names.
    """
    bound = metrics.get(f"{prefix}is_bound", 0.0)
    kind = "exact" if bound == 0 else "upper bound" if bound == 1 else "partly bound"
    return kind + (", with length" if metrics.get(f"{prefix}models_length") == 1 else ", length given")


def label(members: Sequence[Run]) -> str:
    """Name of a setting: that of its runs, with ``*`` where they differ."""
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
