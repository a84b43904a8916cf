"""Rows of the star graph data sets, and their form as ids.

A split is generated on its own, in one pass, without looking at the others: of the graphs drawn it keeps
those that belong to it (``graphs.split_of_digest``) and that it does not have yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Protocol, TypedDict

import numpy as np

from xlm.tasks.star.graphs import (
    LEVELS,
    SPLIT_TENTHS,
    StarGraphs,
    StarLevel,
    count_graphs,
    draw_graphs,
    graph_digests,
    split_of_digest,
)

# Graphs drawn at a time. The rows depend on this number as they do on the seed.
_DRAWS = 4096


class StarRow(TypedDict):
    """One graph: its edges in random order, and the path from source to goal, both included."""

    edges: list[list[int]]
    source: int
    goal: int
    path: list[int]


class PublishedStarRow(TypedDict):
    """One row of the published copies, which name the edges ``edge_list``."""

    edge_list: list[list[int]]
    source: int
    goal: int
    path: list[int]


class EncodedStar(TypedDict):
    """A row as ids: prompt (a b for each edge, source, goal) and target (a b for each edge of the path)."""

    prompt_ids: list[int]
    target_ids: list[int]


class Encoder(Protocol):
    """The part of a tokenizer that ``encode_star`` needs."""

    def encode(self, text: str) -> list[int]:
        """Turn names separated by spaces into ids, one per name."""
        ...


def star_rows(
    split: str, *, level: str | StarLevel, num_rows: Mapping[str, int], seed: int
) -> Iterator[StarRow]:
    """Generate the rows of one split, no graph twice.

    The rows depend on (split, level, seed) only, and a longer split begins with the rows of a shorter one.
    No two splits have a graph in common, for any levels, sizes and seeds.

    Args:
        split: "train", "val" or "test".
        level: A name in ``LEVELS``, or your own level.
        num_rows: Number of rows of each split; the other splits' numbers may be missing.
        seed: Not negative.

    Yields:
        The rows in random order.

    Raises:
        ValueError: If the split or the level is unknown, or the level has too few graphs.
    """
    if split not in SPLIT_TENTHS or split not in num_rows:
        raise ValueError(
            f"unknown split {split!r}: the splits are {', '.join(SPLIT_TENTHS)}, "
            f"num_rows gives {', '.join(num_rows) or 'none'}"
        )
    level = _find_level(level)
    _check_size(split, level, num_rows[split])
    generator = np.random.default_rng([seed, list(SPLIT_TENTHS).index(split)])
    seen: set[bytes] = set()
    while True:
        graphs = draw_graphs(level, _DRAWS, generator)
        for index, digest in enumerate(graph_digests(graphs.edges, graphs.num_edges)):
            if len(seen) >= num_rows[split]:
                return
            if digest not in seen and split_of_digest(digest) == split:
                seen.add(digest)
                yield _row(graphs, index)


def encode_star(row: StarRow | PublishedStarRow, tokenizer: Encoder) -> EncodedStar:
    """Write a row as ids, without special tokens.

    Args:
        row: Generated here or taken from a published copy.
        tokenizer: Encodes the labels as decimal numbers.

    Returns:
        2 * edges + 2 ids of the prompt and 2 * (nodes of the path - 1) ids of the target, where each inner
        node of the path stands twice.
    """
    edges = row["edges"] if "edges" in row else row["edge_list"]
    prompt = [*chain.from_iterable(edges), row["source"], row["goal"]]
    target = list(chain.from_iterable(pairwise(row["path"])))
    return {"prompt_ids": _encode(prompt, tokenizer), "target_ids": _encode(target, tokenizer)}


def _encode(labels: Sequence[int], tokenizer: Encoder) -> list[int]:
    return tokenizer.encode(" ".join(map(str, labels)))


def _row(graphs: StarGraphs, index: int) -> StarRow:
    path: list[int] = graphs.paths[index, : graphs.path_lengths[index]].tolist()
    edges: list[list[int]] = graphs.edges[index, : graphs.num_edges[index]].tolist()
    return {"edges": edges, "source": path[0], "goal": path[-1], "path": path}


def _find_level(level: str | StarLevel) -> StarLevel:
    if isinstance(level, StarLevel):
        return level
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: the levels are {', '.join(LEVELS)}")
    return LEVELS[level]


def _check_size(split: str, level: StarLevel, rows: int) -> None:
    # The number of graphs that the digests give to a split is binomial. With a mean of 2 * rows + 100 or more
    # it is below `rows` with probability at most exp(-50) (Chernoff), so the search always comes to an end.
    graphs = count_graphs(level)
    most = (graphs * SPLIT_TENTHS[split] // 10 - 100) // 2
    if rows > most:
        raise ValueError(
            f"{rows} rows for {split} are too many: this level has {graphs} different graphs, "
            f"so at most {max(most, 0)} rows can be made for {split}; take more labels or longer arms"
        )
