from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations_with_replacement, pairwise, permutations
from math import sqrt
from struct import pack
from typing import Protocol, TypedDict

import numpy as np
import pytest

from xlm.tasks.star.graphs import LEVELS, StarGraphs, StarLevel, count_graphs, draw_graphs, split_of


class Example(TypedDict):
    edge_list: list[list[int]]
    path: list[int]


class LevelVectors(TypedDict):
    kwargs: dict[str, int]
    examples: list[Example]


class Vectors(Protocol):
    def __getitem__(self, name: str, /) -> LevelVectors: ...


Edges = list[tuple[int, int]]


def draw(level: str, count: int) -> list[tuple[Edges, list[int]]]:
    graphs = draw_graphs(LEVELS[level], count, np.random.default_rng(5))
    return [(edges_of(graphs, index), path_of(graphs, index)) for index in range(count)]


def edges_of(graphs: StarGraphs, index: int) -> Edges:
    return [(tail, head) for tail, head in graphs.edges[index, : graphs.num_edges[index]].tolist()]


def path_of(graphs: StarGraphs, index: int) -> list[int]:
    return graphs.paths[index, : graphs.path_lengths[index]].tolist()


def chain_from(edges: Edges, node: int) -> list[int]:
    """The nodes after `node` up to the end; each may have one successor only."""
    heads = [head for tail, head in edges if tail == node]
    assert len(heads) <= 1
    return [heads[0], *chain_from(edges, heads[0])] if heads else []


def find_hub(edges: Edges) -> int:
    (hub,) = [node for node, count in Counter(tail for tail, _ in edges).items() if count > 1]
    return hub


def chains(edges: Edges) -> tuple[int, list[list[int]], list[list[int]]]:
    """The hub, the chains into it (from the hub backwards) and the chains out of it."""
    hub = find_hub(edges)
    backwards = [(head, tail) for tail, head in edges]
    out_of_hub = [[head, *chain_from(edges, head)] for tail, head in edges if tail == hub]
    into_hub = [[tail, *chain_from(backwards, tail)] for tail, head in edges if head == hub]
    return hub, into_hub, out_of_hub


def shortest_path(edges: Edges, source: int, goal: int) -> list[int]:
    """Breadth-first search along the direction of the edges."""
    paths = [[source]]
    for path in paths:
        if path[-1] == goal:
            return path
        paths.extend([*path, head] for tail, head in edges if tail == path[-1])
    raise AssertionError("goal is out of reach")


def check_structure(level: StarLevel, edges: Edges, path: Sequence[int]) -> None:
    hub, into_hub, out_of_hub = chains(edges)
    nodes = {node for edge in edges for node in edge}
    assert nodes <= set(range(level.num_labels))
    assert 1 + sum(map(len, into_hub)) + sum(map(len, out_of_hub)) == len(nodes) == len(edges) + 1
    assert len(out_of_hub) == level.degree
    assert min(map(len, out_of_hub)) >= level.min_plan_length
    assert len(into_hub) <= level.degree
    assert 1 + max(map(len, out_of_hub)) <= level.max_path_length

    assert list(path) == shortest_path(edges, path[0], path[-1])
    assert level.min_path_length <= len(path) <= level.max_path_length
    assert path[0] == hub or path[0] not in {head for _, head in edges}
    assert path[-1] not in {tail for tail, _ in edges}
    assert len(path) - 1 - path.index(hub) >= level.min_plan_length


def assert_close(count: int, total: int, probability: float) -> None:
    """Within five standard deviations of a binomial count."""
    assert abs(count - total * probability) < 5 * sqrt(total * probability * (1 - probability))


@pytest.mark.parametrize("name", ["easy", "medium", "hard"])
def test_levels_have_the_published_parameters(name: str, star_vectors: Vectors) -> None:
    level, published = LEVELS[name], star_vectors[name]["kwargs"]
    if name == "easy":
        lengths = {"pathlength": level.min_path_length}
        assert level.max_path_length == level.min_path_length == level.min_plan_length + 1
    else:
        lengths = {
            "min_pathlength": level.min_path_length,
            "max_pathlength": level.max_path_length,
            "min_plan_length": level.min_plan_length,
        }
    assert {"degree": level.degree, "vocab_size": level.num_labels, **lengths} == published


@pytest.mark.parametrize(
    ("name", "prompt_length", "target_length"),
    [("tiny", 14, 4), ("easy", 26, 8), ("medium", 32, 10), ("hard", 112, 22)],
)
def test_greatest_lengths_are_reached(name: str, prompt_length: int, target_length: int) -> None:
    level = LEVELS[name]
    assert (level.max_prompt_length, level.max_target_length) == (prompt_length, target_length)
    longest = [(2 * len(edges) + 2, 2 * len(path) - 2) for edges, path in draw(name, 500)]
    assert max(target for _, target in longest) == target_length
    assert max(prompt for prompt, _ in longest) <= prompt_length
    if name != "hard":  # five longest arms at once are too rare
        assert max(prompt for prompt, _ in longest) == prompt_length


@pytest.mark.parametrize("name", ["easy", "medium", "hard"])
def test_published_graphs_have_the_level_s_structure(name: str, star_vectors: Vectors) -> None:
    for example in star_vectors[name]["examples"]:
        check_structure(LEVELS[name], [(tail, head) for tail, head in example["edge_list"]], example["path"])


@pytest.mark.parametrize("name", list(LEVELS))
def test_drawn_graphs_have_the_level_s_structure(name: str) -> None:
    for edges, path in draw(name, 300):
        check_structure(LEVELS[name], edges, path)


@pytest.mark.parametrize("name", ["tiny", "easy"])
def test_hub_is_the_source_of_simple_levels(name: str) -> None:
    for edges, path in draw(name, 300):
        hub, into_hub, out_of_hub = chains(edges)
        assert path[0] == hub
        assert into_hub == []
        assert {len(chain) + 1 for chain in out_of_hub} == {len(path)}


def test_arm_length_and_place_of_the_hub_are_uniform() -> None:
    graphs = draw("medium", 20_000)
    counts = Counter((len(path), path.index(find_hub(edges))) for edges, path in graphs)
    distribution = {
        (length, place): 1 / 4 / (length - 2) for length in range(3, 7) for place in range(length - 2)
    }
    assert set(counts) == set(distribution)
    for outcome, probability in distribution.items():
        assert_close(counts[outcome], len(graphs), probability)


def test_arms_are_independent_of_the_path() -> None:
    # The mean number of edges of the other two arms is 2 * 3.5, independent of the path's length.
    graphs = draw("medium", 20_000)
    for length in range(3, 7):
        rest = [len(edges) - (length - 1) for edges, path in graphs if len(path) == length]
        deviation = sqrt(2 * 1.25 / len(rest))
        assert abs(float(np.mean(rest)) - 7) < 5 * deviation


def test_goal_arm_is_uniform() -> None:
    graphs = draw("easy", 9_000)
    ranks: Counter[int] = Counter()
    for edges, path in graphs:
        leaves = sorted({head for _, head in edges} - {tail for tail, _ in edges})
        ranks[leaves.index(path[-1])] += 1
    for rank in range(3):
        assert_close(ranks[rank], len(graphs), 1 / 3)


def test_labels_and_order_of_edges_are_uniform() -> None:
    graphs = draw("easy", 12_000)
    hubs = Counter(path[0] for _, path in graphs)
    goals = Counter(path[-1] for _, path in graphs)
    for label in range(20):
        assert_close(hubs[label], len(graphs), 1 / 20)
        assert_close(goals[label], len(graphs), 1 / 20)
    first = Counter(edges.index((path[0], path[1])) for edges, path in graphs)
    for place in range(12):
        assert_close(first[place], len(graphs), 1 / 12)
    ahead = sum(edges.index((path[0], path[1])) < edges.index((path[1], path[2])) for edges, path in graphs)
    assert_close(ahead, len(graphs), 1 / 2)


def test_draws_depend_on_the_generator_only() -> None:
    state = np.random.get_state(legacy=False)
    assert draw("medium", 20) == draw("medium", 20)
    after = np.random.get_state(legacy=False)
    np.testing.assert_equal(after, state)


@pytest.mark.parametrize(
    "level",
    [
        StarLevel(degree=2, min_path_length=3, max_path_length=3, min_plan_length=2, num_labels=6),
        StarLevel(degree=2, min_path_length=2, max_path_length=3, min_plan_length=1, num_labels=6),
        StarLevel(degree=3, min_path_length=2, max_path_length=3, min_plan_length=1, num_labels=7),
    ],
)
def test_number_of_graphs_is_that_of_an_enumeration(level: StarLevel) -> None:
    arms = [
        (length, place)
        for length in range(level.min_path_length, level.max_path_length + 1)
        for place in range(length - level.min_plan_length)
    ]
    found: set[frozenset[tuple[int, int]]] = set()
    for chosen in combinations_with_replacement(arms, level.degree):
        num_nodes = 1 + sum(length - 1 for length, _ in chosen)
        for hub, *others in permutations(range(level.num_labels), num_nodes):
            edges: Edges = []
            labels = iter(others)
            for length, place in chosen:
                arm = [hub if index == place else next(labels) for index in range(length)]
                edges += pairwise(arm)
            found.add(frozenset(edges))
    assert count_graphs(level) == len(found)


def test_number_of_tiny_and_easy_graphs() -> None:
    # 12! / 5! labellings of 7 nodes, 20! / 7! of 13; the three arms may be swapped.
    assert count_graphs(LEVELS["tiny"]) == 479_001_600 // 120 // 6
    assert count_graphs(LEVELS["easy"]) == 2_432_902_008_176_640_000 // 5_040 // 6


def test_split_is_the_documented_function_of_the_edges() -> None:
    for edges, _ in draw("medium", 300):
        codes = b"".join(pack("<HH", head, tail) for tail, head in sorted(edges))
        digest = blake2b(codes, digest_size=16, person=b"xlm star graph").digest()
        expected = ["train"] * 8 + ["val", "test"]
        assert split_of(edges) == split_of(sorted(edges)) == expected[int.from_bytes(digest, "little") % 10]


def test_splits_have_their_share_and_know_directions() -> None:
    graphs = draw("hard", 3_000)
    splits = Counter(split_of(edges) for edges, _ in graphs)
    for split, share in {"train": 0.8, "val": 0.1, "test": 0.1}.items():
        assert_close(splits[split], len(graphs), share)
    # The reversed graph is another one: the two splits agree with probability 0.8^2 + 2 * 0.1^2.
    agreements = sum(
        split_of(edges) == split_of([(head, tail) for tail, head in edges]) for edges, _ in graphs
    )
    assert_close(agreements, len(graphs), 0.66)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degree": 1}, "degree must be at least 2, got 1"),
        ({"min_plan_length": 0}, "got 0, 3, 6"),
        ({"min_plan_length": 3}, "got 3, 3, 6"),
        ({"max_path_length": 2}, "got 2, 3, 2"),
        ({"num_labels": 15}, "at least 16, .* got 15"),
        ({"num_labels": 65_536}, "less than 65536, got 65536"),
    ],
)
def test_impossible_levels_are_refused(change: dict[str, int], message: str) -> None:
    medium = {
        "degree": 3,
        "min_path_length": 3,
        "max_path_length": 6,
        "min_plan_length": 2,
        "num_labels": 20,
    }
    assert StarLevel(**medium) == LEVELS["medium"]
    with pytest.raises(ValueError, match=message):
        StarLevel(**medium | change)
