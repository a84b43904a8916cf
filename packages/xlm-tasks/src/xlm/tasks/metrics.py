"""Metrics of generated texts against their references.

A metric here is a ratio: a *score* of one generation counts hits and total, the accumulator
sums both over all generations and divides once at the end, so that the result does not depend on how they
were split into batches or processes. A task's metrics are a table of scores, as in ``ExactMatch`` below.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor


class Generation(TypedDict):
    """One generated row. Ids hold no padding and no special tokens added by a model family."""

    prompt_ids: list[int]
    ids: list[int]
    reference_ids: list[int]
    prompt: str
    text: str
    reference: str
    fixed: NotRequired[list[bool]]
    """Which tokens of the reference were given (infilling)."""


Score = Callable[[Generation], tuple[int, int]]


def exact_match(generation: Generation) -> tuple[int, int]:
    """Whether the generated ids equal the reference's, out of 1."""
    return int(generation["ids"] == generation["reference_ids"]), 1


def token_accuracy(generation: Generation) -> tuple[int, int]:
    """Positions that hold the reference's token, out of the length of the longer of the two."""
    ids, reference_ids = generation["ids"], generation["reference_ids"]
    matches = sum(token == reference for token, reference in zip(ids, reference_ids, strict=False))
    return matches, max(len(ids), len(reference_ids))


def zero_sums(names: Iterable[str]) -> dict[str, Tensor]:
    """The state before any generation: int64 zeros ``NAME_hits`` and ``NAME_total`` for each name."""
    return {
        f"{name}_{part}": torch.zeros((), dtype=torch.int64) for name in names for part in ("hits", "total")
    }


def add_scores(
    sums: dict[str, Tensor], scores: Mapping[str, Score], generations: Sequence[Generation]
) -> None:
    """Add the scores of ``generations`` to the state made by ``zero_sums``."""
    for name, score in scores.items():
        for generation in generations:
            hits, total = score(generation)
            sums[f"{name}_hits"] += hits
            sums[f"{name}_total"] += total


def ratios(sums: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, float]:
    """Hits divided by total for each name; 0.0 where the total is 0."""
    return {name: int(sums[f"{name}_hits"]) / max(1, int(sums[f"{name}_total"])) for name in names}


class ExactMatch:
    """Accumulates ``exact_match`` (share of rows) and ``token_accuracy`` (share of tokens).

    Attributes:
        sums: The state, see ``zero_sums``. Adding up the states of several processes gives the state of all.
    """

    SCORES: Mapping[str, Score] = {"exact_match": exact_match, "token_accuracy": token_accuracy}

    def __init__(self) -> None:
        self.sums = zero_sums(self.SCORES)

    def reset(self) -> None:
        """Forget all generations."""
        self.sums = zero_sums(self.SCORES)

    def update(self, generations: Sequence[Generation]) -> None:
        """Count more generations."""
        add_scores(self.sums, self.SCORES, generations)

    def compute(self) -> dict[str, float]:
        """The metrics by name, each in [0, 1]; 0.0 for no generations."""
        return ratios(self.sums, self.SCORES)
