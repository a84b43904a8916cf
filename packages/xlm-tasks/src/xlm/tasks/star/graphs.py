"""Random star graphs: levels of difficulty, drawing, identity and the split that a graph belongs to.

A star graph consists of ``degree`` arms that share one node, the hub. Each arm is a chain of nodes with all
edges in one direction; source and goal are the ends of one arm. The hub stands first in each arm (Bachmann
and Nagarajan, arXiv 2403.06963) or anywhere inside it (Patel et al., arXiv 2505.05755), where several chains
lead into the hub and several out of it.

Graphs are drawn many at a time with numpy. Which split a graph belongs to is a function of its edges alone:
neither the seed nor the level nor the sizes enter, so that no training set, whatever its settings, can hold a
graph of any test set.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import combinations_with_replacement
from math import factorial, perm

import numpy as np
from numpy.typing import NDArray

# How many tenths of all graphs belong to each split.
SPLIT_TENTHS = {"train": 8, "val": 1, "test": 1}

# Edges are packed as tail * 2^16 + head.
_LABEL_BITS = 16
_NO_EDGE = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class StarLevel:
    """What the graphs of a level look like. Lengths count nodes.

    For each arm the length is uniform in {min_path_length, ..., max_path_length}, and the number of nodes
    before the hub is uniform in {0, ..., length - 1 - min_plan_length}. Labels are drawn without replacement.

    Args:
        degree: Number of arms, at least 2.
        min_path_length: Minimum length of an arm, the hub included.
        max_path_length: Maximum length of an arm, the hub included.
        min_plan_length: Minimum number of nodes after the hub, in 1, ..., min_path_length - 1. With
            min_plan_length = max_path_length - 1 the hub stands first in each arm and is the source.
        num_labels: The nodes' labels are numbers in {0, ..., num_labels - 1}.

    Raises:
        ValueError: If no such graph exists.
    """

    degree: int
    min_path_length: int
    max_path_length: int
    min_plan_length: int
    num_labels: int

    def __post_init__(self) -> None:
        if self.degree < 2:
            raise ValueError(f"degree must be at least 2, got {self.degree}")
        if not 1 <= self.min_plan_length < self.min_path_length <= self.max_path_length:
            raise ValueError(
                "lengths must satisfy 1 <= min_plan_length < min_path_length <= max_path_length, got "
                f"{self.min_plan_length}, {self.min_path_length}, {self.max_path_length}"
            )
        if not self.max_nodes <= self.num_labels < 2**_LABEL_BITS:
            raise ValueError(
                f"num_labels must be at least {self.max_nodes}, the nodes of {self.degree} arms of "
                f"{self.max_path_length} nodes with a common hub, and less than {2**_LABEL_BITS}, "
                f"got {self.num_labels}"
            )

    @property
    def max_nodes(self) -> int:
        """Nodes of the largest graph."""
        return 1 + self.max_edges

    @property
    def max_edges(self) -> int:
        """Edges of the largest graph."""
        return self.degree * (self.max_path_length - 1)

    @property
    def max_prompt_length(self) -> int:
        """Tokens of the longest prompt: two for each edge, source and goal."""
        return 2 * self.max_edges + 2

    @property
    def max_target_length(self) -> int:
        """Tokens of the longest target: two for each edge of the path."""
        return 2 * (self.max_path_length - 1)


LEVELS = {
    "tiny": StarLevel(degree=3, min_path_length=3, max_path_length=3, min_plan_length=2, num_labels=12),
    "easy": StarLevel(degree=3, min_path_length=5, max_path_length=5, min_plan_length=4, num_labels=20),
    "medium": StarLevel(degree=3, min_path_length=3, max_path_length=6, min_plan_length=2, num_labels=20),
    "hard": StarLevel(degree=5, min_path_length=6, max_path_length=12, min_plan_length=5, num_labels=56),
}


@dataclass(frozen=True)
class StarGraphs:
    """Many graphs in arrays that are padded on the right.

    Attributes:
        edges: (graphs, max_edges, 2) int64 tail and head of each edge, in random order.
        num_edges: (graphs,) int64.
        paths: (graphs, max_path_length) int64 nodes from source to goal.
        path_lengths: (graphs,) int64.
    """

    edges: NDArray[np.int64]
    num_edges: NDArray[np.int64]
    paths: NDArray[np.int64]
    path_lengths: NDArray[np.int64]


def draw_graphs(level: StarLevel, count: int, generator: np.random.Generator) -> StarGraphs:
    """Draw graphs independently from the distribution described at ``StarLevel``.

    Args:
        level: The kind of graphs.
        count: Number of graphs.
        generator: The only source of randomness.

    Returns:
        The graphs; some may be equal.
    """
    size = (count, level.degree)
    lengths = generator.integers(level.min_path_length, level.max_path_length, size=size, endpoint=True)
    hub_places = generator.integers(0, lengths - level.min_plan_length)
    labels = generator.permuted(np.tile(np.arange(level.num_labels), (count, 1)), axis=1)

    places = np.arange(level.max_path_length)
    in_arm = places < lengths[..., None]  # (count, degree, max_path_length)
    is_hub = places == hub_places[..., None]
    # The hub has the first label; all other nodes take the next ones in turn, arm after arm.
    turns = (in_arm & ~is_hub).reshape(count, -1).cumsum(axis=1)
    turns = np.where(is_hub.reshape(count, -1), 0, turns)
    arms = np.take_along_axis(labels, turns, axis=1).reshape(in_arm.shape)

    is_edge = in_arm[..., 1:].reshape(count, -1)
    edges = np.stack([arms[..., :-1], arms[..., 1:]], axis=-1).reshape(count, -1, 2)
    # Uniform keys give a uniform order; keys above 1 move the padding to the right.
    order = np.where(is_edge, generator.random(is_edge.shape), 2.0).argsort(axis=1)
    return StarGraphs(
        edges=np.take_along_axis(edges, order[..., None], axis=1),
        num_edges=is_edge.sum(axis=1),
        paths=arms[:, 0],
        path_lengths=lengths[:, 0],
    )


def graph_digests(edges: NDArray[np.int64], num_edges: NDArray[np.int64]) -> list[bytes]:
    """Compute 16 bytes for each graph that identify its set of directed edges, independent of their order.

    Args:
        edges: (graphs, max_edges, 2) tail and head of each edge, padded on the right.
        num_edges: (graphs,) edges of each graph.

    Returns:
        One digest per graph; equal for equal sets of edges, and otherwise different with certainty for all
        practical purposes.
    """
    codes = edges[..., 0] << _LABEL_BITS | edges[..., 1]
    max_edges: int = edges.shape[1]
    is_edge = np.arange(max_edges) < num_edges[:, None]
    in_order = np.sort(np.where(is_edge, codes, _NO_EDGE), axis=1).astype("<u4")
    return [
        blake2b(row[:length].tobytes(), digest_size=16, person=b"xlm star graph").digest()
        for row, length in zip(in_order, num_edges.tolist(), strict=True)
    ]


def split_of_digest(digest: bytes) -> str:
    """Name of the split that a graph belongs to, from its digest."""
    tenth = int.from_bytes(digest, "little") % 10
    for split, tenths in SPLIT_TENTHS.items():
        if tenth < tenths:
            return split
        tenth -= tenths
    raise AssertionError("SPLIT_TENTHS must add up to 10")


def split_of(edges: Iterable[tuple[int, int]]) -> str:
    """Name of the split that a graph belongs to, for graphs from elsewhere.

    Args:
        edges: The directed edges in any order.

    Returns:
        A key of ``SPLIT_TENTHS``.
    """
    graph = np.array([list(edges)], dtype=np.int64)
    return split_of_digest(graph_digests(graph, np.array([graph.shape[1]]))[0])


@cache
def count_graphs(level: StarLevel) -> int:
    """Count the different graphs of a level: sets of directed edges, whichever ends are source and goal.

    A shape is a set of chains into the hub and a set of chains out of it. A shape with n nodes has
    num_labels! / (num_labels - n)! labellings, and those that swap chains of equal length on one side are one
    graph.

    Args:
        level: The kind of graphs.
    """
    arms = [
        (before, length - 1 - before)
        for length in range(level.min_path_length, level.max_path_length + 1)
        for before in range(length - level.min_plan_length)
    ]
    shapes = {
        (
            tuple(sorted(before for before, _ in chosen if before)),
            tuple(sorted(after for _, after in chosen)),
        )
        for chosen in combinations_with_replacement(arms, level.degree)
    }
    total = 0
    for into_hub, out_of_hub in shapes:
        swaps = 1
        for repeats in [*Counter(into_hub).values(), *Counter(out_of_hub).values()]:
            swaps *= factorial(repeats)
        total += perm(level.num_labels, 1 + sum(into_hub) + sum(out_of_hub)) // swaps
    return total
