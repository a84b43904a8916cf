"""The evaluated rows of a result, read from its files one at a time, and resampled."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from xlm.core.config.run_files import LIKELIHOODS, PREDICTIONS
from xlm.core.protocols import Generation, GenerationMetric
from xlm.eval.intervals import Interval, Resampled, percentile

Record = Mapping[str, Any]
ONE_BY_ONE = "row_by_row"
"""Attribute of a metric; false: it is too slow to score each row a second time, so it has no interval."""
GRAMS = (1, 2, 3)


def likelihoods(folder: Path, loader: str, of: str) -> Iterator[Record]:
    """The likelihood of each row of a loader, of the ``network`` or its ``sampler``."""
    return (row for row in _records(folder / LIKELIHOODS) if (row["loader"], row["of"]) == (loader, of))


def generations(folder: Path, loader: str) -> Iterator[Record]:
    """The generated texts of a loader."""
    return (row for row in _records(folder / PREDICTIONS) if row["loader"] == loader)


def _records(path: Path) -> Iterator[Record]:
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)


class Scores:
    """Metrics of generated texts, each with the replicates of its value.

    Args:
        metrics: The task's metrics by name. Those that keep more than sums, and those with
            ``row_by_row = False``, are skipped.
    """

    def __init__(self, metrics: Mapping[str, GenerationMetric]) -> None:
        self._metrics = [
            metric
            for metric in metrics.values()
            if not getattr(metric, "lists", None) and getattr(metric, ONE_BY_ONE, True)
        ]
        self._shapes = [
            [(name, value.shape, value.dtype) for name, value in metric.sums.items()]
            for metric in self._metrics
        ]
        self._own = len(_text_sums({"ids": [], "nfe": 0}))
        sizes = [math.prod(shape) for shapes in self._shapes for _, shape, _ in shapes]
        self._resampled = Resampled(self._own + sum(sizes))

    def add(self, record: Record) -> None:
        """Add a line of ``predictions.jsonl``."""
        row = _text_sums(record)
        for metric in self._metrics:
            metric.reset()
            metric.update([cast("Generation", record)])
            for value in metric.sums.values():
                row.extend(value.double().reshape(-1).tolist())
        self._resampled.add(row)

    def finish(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Value and replicates, (replicates,), of each metric."""
        self._resampled.finish()
        values = self._compute(self._resampled.totals)
        found = [self._compute(sums) for sums in self._resampled.replicates]
        replicates = {
            name: torch.tensor([each[name] for each in found], dtype=torch.float64) for name in values
        }
        return values, replicates

    def _compute(self, sums: Tensor) -> dict[str, float]:
        found = _text_metrics(sums[: self._own].tolist())
        start = self._own
        for metric, shapes in zip(self._metrics, self._shapes, strict=True):
            for name, shape, dtype in shapes:
                size = math.prod(shape)
                metric.sums[name] = sums[start : start + size].reshape(shape).to(dtype)
                start += size
            found |= metric.compute()
        return found


def _text_sums(record: Record) -> list[float]:
    """Sums of one text: rows, not empty, tokens, evaluations, entropy, and its n-grams."""
    ids: Sequence[int] = record["ids"]
    row = [1.0, float(bool(ids)), float(len(ids)), float(record["nfe"]), token_entropy(ids)]
    for size in GRAMS:
        grams = list(zip(*(ids[start:] for start in range(size)), strict=False))
        row += [float(len(set(grams))), float(len(grams))]
    return row


def _text_metrics(sums: Sequence[float]) -> dict[str, float]:
    rows, filled, tokens, nfe, entropy, *grams = sums
    return {
        "length": tokens / max(rows, 1.0),
        "nfe_per_sequence": nfe / max(rows, 1.0),
        "tokens_per_evaluation": tokens / max(nfe, 1.0),
        "token_entropy": entropy / max(filled, 1.0),
        **{
            f"distinct_{size}": grams[2 * place] / max(grams[2 * place + 1], 1.0)
            for place, size in enumerate(GRAMS)
        },
    }


def token_entropy(ids: Sequence[int]) -> float:
    """Entropy in nats of a token drawn at random from a text; 0 for an empty one."""
    counted = sum(count * math.log(count) for count in Counter(ids).values())
    return math.log(len(ids)) - counted / len(ids) if ids else 0.0


class RatioOfSums:
    """The mean of rows, or the ratio of two of their sums, with its interval.

    Args:
        num_sums: Sums of a row.
    """

    def __init__(self, num_sums: int) -> None:
        self._resampled = Resampled(num_sums)
        self.add, self.finish = self._resampled.add, self._resampled.finish

    @property
    def totals(self) -> list[float]:
        """Sums over all rows."""
        return self._resampled.totals.tolist()

    def ratio(self, upper: int, lower: int) -> Interval:
        """The sum ``upper`` divided by the sum ``lower``."""
        return percentile(*self.replicated(upper, lower))

    def replicated(self, upper: int, lower: int) -> tuple[float, Tensor]:
        """The same ratio, and that of each replicate, (replicates,)."""
        totals, replicates = self._resampled.totals, self._resampled.replicates
        value = float(totals[upper] / totals[lower])
        return value, replicates[:, upper] / replicates[:, lower]
