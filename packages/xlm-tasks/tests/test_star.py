from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import pytest

from xlm.tasks.metrics import Generation
from xlm.tasks.star.dataset import PublishedStarRow, StarRow, encode_star, star_rows
from xlm.tasks.star.graphs import LEVELS, StarLevel, count_graphs, split_of
from xlm.tasks.star.metrics import StarMetrics, is_valid_path
from xlm.tasks.tokenizers import NumberTokenizer

SPLITS = ("train", "val", "test")
# 8 * 7 * 6 * 5 * 4 / 2 = 3360 graphs.
SMALL = StarLevel(degree=2, min_path_length=3, max_path_length=3, min_plan_length=2, num_labels=8)
SMALL_ROWS = {"train": 1294, "val": 118, "test": 118}


class Example(TypedDict):
    edge_list: list[list[int]]
    source: int
    goal: int
    path: list[int]
    prompt_ids: list[int]
    target_ids: list[int]


class LevelVectors(TypedDict):
    examples: list[Example]


class Vectors(Protocol):
    def __getitem__(self, name: str, /) -> LevelVectors: ...


def identities(rows: Iterable[StarRow]) -> list[frozenset[tuple[int, int]]]:
    return [frozenset((tail, head) for tail, head in row["edges"]) for row in rows]


def rows_of(split: str, level: str | StarLevel, count: int, seed: int = 0) -> list[StarRow]:
    return list(star_rows(split, level=level, num_rows={split: count}, seed=seed))


@pytest.mark.parametrize(("level", "split"), list(product(LEVELS, SPLITS)))
def test_each_split_has_its_number_of_different_graphs(level: str, split: str) -> None:
    rows = list(star_rows(split, level=level, num_rows={"train": 5000, "val": 0, "test": 700}, seed=3))
    assert len(rows) == len(set(identities(rows))) == {"train": 5000, "val": 0, "test": 700}[split]


def test_splits_stay_disjoint_where_graphs_are_few() -> None:
    # Half of all graphs are used in one run, nearly all of them over four seeds.
    used: dict[str, set[frozenset[tuple[int, int]]]] = {split: set() for split in SPLITS}
    for split, seed in product(SPLITS, range(4)):
        found = identities(star_rows(split, level=SMALL, num_rows=SMALL_ROWS, seed=seed))
        assert len(set(found)) == SMALL_ROWS[split]
        used[split] |= set(found)
    assert not used["train"] & used["val"]
    assert not used["train"] & used["test"]
    assert not used["val"] & used["test"]
    assert len(used["train"]) > 0.8 * 0.8 * 3360


def test_rows_belong_to_their_split() -> None:
    for split in SPLITS:
        for row in rows_of(split, "medium", 100):
            assert split_of((tail, head) for tail, head in row["edges"]) == split


def test_rows_are_whole() -> None:
    for row in rows_of("train", "hard", 200):
        steps = set(zip(row["path"], row["path"][1:], strict=False))
        assert steps <= identities([row])[0]
        assert (row["source"], row["goal"]) == (row["path"][0], row["path"][-1])
        assert len(identities([row])[0]) == len(row["edges"])
        assert all(type(label) is int for edge in row["edges"] for label in edge)


def test_rows_depend_on_split_level_and_seed_only() -> None:
    rows = rows_of("train", "medium", 6000, seed=7)
    np.random.seed(1)
    assert rows == rows_of("train", "medium", 6000, seed=7)
    assert rows == rows_of("train", LEVELS["medium"], 6000, seed=7)
    assert rows[:50] == list(star_rows("train", level="medium", num_rows={"train": 50, "test": 9}, seed=7))
    assert not set(identities(rows)) & set(identities(rows_of("train", "medium", 6000, seed=8)))


def test_too_many_rows_are_refused_with_the_number_of_graphs() -> None:
    assert count_graphs(SMALL) == 3360
    for split, most in SMALL_ROWS.items():
        with pytest.raises(ValueError, match=rf"3360 different graphs, so at most {most} rows .* {split}"):
            next(star_rows(split, level=SMALL, num_rows={split: most + 1}, seed=0))
    smallest = StarLevel(degree=2, min_path_length=2, max_path_length=2, min_plan_length=1, num_labels=3)
    with pytest.raises(ValueError, match="3 different graphs, so at most 0 rows"):
        next(star_rows("test", level=smallest, num_rows={"test": 1}, seed=0))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown level 'harder': the levels are tiny, easy, medium, hard"):
        next(star_rows("train", level="harder", num_rows={"train": 1}, seed=0))
    with pytest.raises(ValueError, match="unknown split 'dev': the splits are train, val, test"):
        next(star_rows("dev", level="tiny", num_rows={"dev": 1}, seed=0))
    with pytest.raises(ValueError, match=r"unknown split 'val': .* num_rows gives train, test"):
        next(star_rows("val", level="tiny", num_rows={"train": 1, "test": 1}, seed=0))


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_published_rows_get_the_published_ids(level: str, star_vectors: Vectors) -> None:
    tokenizer = NumberTokenizer(LEVELS[level].num_labels)
    for example in star_vectors[level]["examples"]:
        published: PublishedStarRow = {
            "edge_list": example["edge_list"],
            "source": example["source"],
            "goal": example["goal"],
            "path": example["path"],
        }
        row: StarRow = {
            "edges": example["edge_list"],
            "source": example["source"],
            "goal": example["goal"],
            "path": example["path"],
        }
        expected = {"prompt_ids": example["prompt_ids"], "target_ids": example["target_ids"]}
        assert encode_star(published, tokenizer) == expected
        assert encode_star(row, tokenizer) == expected


def test_labels_unknown_to_the_tokenizer_are_refused() -> None:
    row: StarRow = {"edges": [[0, 1], [0, 2]], "source": 0, "goal": 2, "path": [0, 2]}
    with pytest.raises(ValueError, match="'2' is not a token"):
        encode_star(row, NumberTokenizer(2))


def test_rows_make_a_hugging_face_dataset(tmp_path: Path) -> None:
    arguments = {"split": "val", "level": SMALL, "num_rows": SMALL_ROWS, "seed": 0}
    dataset_class = import_module("datasets").Dataset  # `datasets` ships no types
    dataset = dataset_class.from_generator(star_rows, gen_kwargs=arguments, cache_dir=str(tmp_path))
    rows = list(star_rows("val", level=SMALL, num_rows=SMALL_ROWS, seed=0))
    assert dataset.to_list() == rows

    tokenizer = NumberTokenizer(8)
    encoded = dataset.map(
        encode_star, fn_kwargs={"tokenizer": tokenizer}, remove_columns=dataset.column_names
    )
    assert encoded.to_list() == [encode_star(row, tokenizer) for row in rows]


# Metrics


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
