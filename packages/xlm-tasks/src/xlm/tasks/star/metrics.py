"""Metrics of generated paths in star graphs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from xlm.tasks.metrics import Generation, Score, ScoreRatios, exact_match, token_accuracy


def is_valid_path(prompt_ids: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether ``ids`` walk along the prompt's edges, in their direction, from its source to its goal.

    Works on ids alone: a token that is no label, such as a special one, is in no edge.

    Args:
        prompt_ids: The edges' tails and heads in turn, then source and goal. Where it cannot be read like
            this, no path is valid.
        ids: The path written as edges (a b b c c d).
    """
    if len(prompt_ids) < 4 or len(prompt_ids) % 2 or not ids or len(ids) % 2:
        return False
    *edges, (source, goal) = _pairs(prompt_ids)
    steps = _pairs(ids)
    connects = steps[0][0] == source and steps[-1][1] == goal
    consecutive = all(step[1] == following[0] for step, following in pairwise(steps))
    return connects and consecutive and set(steps) <= set(edges)


def valid_path_rate(generation: Generation) -> tuple[int, int]:
    """Whether the generated ids are a valid path, out of 1; looks at the prompt, never at the reference."""
    return int(is_valid_path(generation["prompt_ids"], generation["ids"])), 1


class StarMetrics(ScoreRatios):
    """Accumulates ``exact_match``, ``token_accuracy`` and ``valid_path_rate``.

    A star graph has one path from source to goal, so the first and the last differ only where the reference
    is not that path: a difference points to wrong data or to a prompt that was cut.
    """

    SCORES: Mapping[str, Score] = {
        "exact_match": exact_match,
        "token_accuracy": token_accuracy,
        "valid_path_rate": valid_path_rate,
    }


def _pairs(ids: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ids[::2], ids[1::2], strict=True))
