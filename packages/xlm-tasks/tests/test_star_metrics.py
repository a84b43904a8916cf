from collections.abc import Iterator
from itertools import pairwise, product

import pytest

from xlm.tasks.metrics import Generation
from xlm.tasks.star.dataset import encode_star, star_rows
from xlm.tasks.star.metrics import StarMetrics, is_valid_path
from xlm.tasks.tokenizers import NumberTokenizer

# 10 -> 11 -> 13 and 10 -> 12 -> 13 -> 14, from 10 to 13: two paths, which no star graph has.
TWO_PATHS = [10, 11, 11, 13, 10, 12, 12, 13, 13, 14, 10, 13]
# Hub 10 with the arms 10 11 12 and 10 13 14, from 10 to 12.
STAR = [10, 11, 13, 14, 11, 12, 10, 13, 10, 12]


def walks(edges: set[tuple[int, int]], node: int, goal: int) -> Iterator[list[int]]:
    """All walks from node to goal, by depth-first search."""
    if node == goal:
        yield [goal]
    for tail, head in edges:
        if tail == node:
            for rest in walks(edges, head, goal):
                yield [node, *rest]


def make_generation(prompt_ids: list[int], ids: list[int], reference_ids: list[int]) -> Generation:
    return {
        "prompt_ids": prompt_ids,
        "ids": ids,
        "reference_ids": reference_ids,
        "prompt": "",
        "text": "",
        "reference": "",
    }


@pytest.mark.parametrize("prompt_ids", [TWO_PATHS, STAR])
def test_valid_paths_are_those_of_a_search(prompt_ids: list[int]) -> None:
    *edges, source, goal = prompt_ids
    edge_set = set(zip(edges[::2], edges[1::2], strict=True))
    expected: set[tuple[int, ...]] = set()
    for walk in walks(edge_set, source, goal):
        expected.add(tuple(node for step in pairwise(walk) for node in step))
    found = {
        ids
        for length in range(7)
        for ids in product(range(10, 15), repeat=length)
        if is_valid_path(prompt_ids, ids)
    }
    assert found == expected
    assert found


@pytest.mark.parametrize("level", ["tiny", "easy", "medium", "hard"])
def test_valid_path_is_the_row_s_own_path_only(level: str) -> None:
    tokenizer = NumberTokenizer(56)
    for row in star_rows("test", level=level, num_rows={"test": 50}, seed=1):
        encoded = encode_star(row, tokenizer)
        prompt_ids, target_ids = encoded["prompt_ids"], encoded["target_ids"]
        assert is_valid_path(prompt_ids, target_ids)
        assert not is_valid_path(prompt_ids, target_ids[::-1])
        assert not is_valid_path(prompt_ids, target_ids[2:])
        assert not is_valid_path(prompt_ids, target_ids[:-2])
        assert not is_valid_path(prompt_ids, target_ids[:2] + target_ids[4:])
        for place in range(len(target_ids)):
            assert not is_valid_path(prompt_ids, [*target_ids[:place], 2, *target_ids[place + 1 :]])


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [10],
        [10, 11, 11],
        [0, 0, 0, 0],
        [10, 11, 11, 12, 0, 0],
        [4, 10, 11, 11, 12, 3],
        [10, 12],
        [12, 11, 11, 10],
        [10, 11, 12],
        [10, 11, 10, 11, 11, 12],
        [-1, 99],
    ],
)
def test_malformed_generations_are_no_paths(ids: list[int]) -> None:
    assert not is_valid_path(STAR, ids)


@pytest.mark.parametrize("prompt_ids", [[], [10], [10, 12], [10, 11, 12], [10, 11, 11, 12, 10, 12, 0]])
def test_no_path_is_valid_where_the_prompt_is_no_graph(prompt_ids: list[int]) -> None:
    assert not is_valid_path(prompt_ids, [10, 11, 11, 12])


def test_star_metrics_counts_rows_and_tokens() -> None:
    reference = [10, 11, 11, 13]
    metric = StarMetrics()
    metric.update(
        [
            make_generation(TWO_PATHS, [10, 11, 11, 13], reference),  # exact
            make_generation(TWO_PATHS, [10, 12, 12, 13], reference),  # valid, two tokens differ
            make_generation(TWO_PATHS, [10, 11, 11], reference),  # one token is missing
        ]
    )
    metric.update([make_generation(TWO_PATHS, [], reference), make_generation([], [], [])])
    assert metric.compute() == {"exact_match": 2 / 5, "token_accuracy": 9 / 16, "valid_path_rate": 2 / 5}


def test_star_metrics_starts_and_resets_to_zero() -> None:
    metric = StarMetrics()
    nothing = {"exact_match": 0.0, "token_accuracy": 0.0, "valid_path_rate": 0.0}
    assert metric.compute() == nothing
    metric.update([make_generation(STAR, [10, 11, 11, 12], [10, 11, 11, 12])])
    assert metric.compute() == dict.fromkeys(nothing, 1.0)
    metric.reset()
    assert metric.compute() == nothing
