"""Metrics of generated texts against their references.

A metric here is a ratio: a *score* of one generation counts hits and total, the accumulator
sums both over all generations and divides once at the end, so that the result does not depend on how they
were split into batches or processes. A task's metrics are a table of scores, as in ``ExactMatch`` below.
"""

from collections.abc import Callable, Mapping, Sequence
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


class ScoreRatios:
    """Accumulates the scores of a table, ``SCORES``, each as hits divided by total; base of tasks' metrics.

    Attributes:
        sums: The state, int64 scalars ``NAME_hits`` and ``NAME_total`` of each score. Adding up the states of
            several processes gives the state of all.
    """

    SCORES: Mapping[str, Score] = {}

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all generations."""
        names = [f"{name}_{part}" for name in self.SCORES for part in ("hits", "total")]
        self.sums: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.int64) for name in names}

    def update(self, generations: Sequence[Generation]) -> None:
        """Count more generations."""
        for name, score in self.SCORES.items():
            for generation in generations:
                hits, total = score(generation)
                self.sums[f"{name}_hits"] += hits
                self.sums[f"{name}_total"] += total

    def compute(self) -> dict[str, float]:
        """The ratios by name, each in [0, 1]; 0.0 for no generations."""
        return {
            name: int(self.sums[f"{name}_hits"]) / max(1, int(self.sums[f"{name}_total"]))
            for name in self.SCORES
        }


class ExactMatch(ScoreRatios):
    """Accumulates ``exact_match`` (share of rows) and ``token_accuracy`` (share of tokens)."""

    SCORES: Mapping[str, Score] = {"exact_match": exact_match, "token_accuracy": token_accuracy}
