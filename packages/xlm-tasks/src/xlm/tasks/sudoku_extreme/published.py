"""Rows of the published set, with a validation split held out of its training split."""

from collections.abc import Iterator
from typing import cast

import datasets
import numpy as np

from xlm.tasks.sudoku_extreme.boards import NUM_CELLS, Cells, board_digests, shuffle_board, write_board
from xlm.tasks.sudoku_extreme.dataset import FEATURES, SPLITS, SudokuRow, require_split


def published_rows(
    split: str,
    *,
    path: str,
    local: str | None = None,
    revision: str | None = None,
    one_in: int = 256,
    num_train: int | None = None,
    num_shuffles: int = 0,
    seed: int = 0,
) -> datasets.Dataset:
    """The published set, with a validation split held out of its training split.

    A row of the training split is held out where its digest (``board_digests``) is a multiple of ``one_in``,
    so two puzzles that are the same up to symmetry are never in train and val both.

    Args:
        split: "train", "val" or "test".
        path: Id on the Hub, or a local folder with ``train.csv`` and ``test.csv`` (or parquet files).
        local: Local folder that is read instead of ``path``; None for none.
        revision: Revision of the Hub's repository; None for the newest.
        one_in: One row in this many is held out, on average.
        num_train: Only this many training rows, those with the smallest digests; None for all.
        num_shuffles: Random symmetric copies added to each training row.
        seed: Seed of these copies.

    Raises:
        ValueError: If the split is unknown, or ``question`` or ``answer`` is no board somewhere.
    """
    require_split(split, SPLITS)
    path = local or path
    rows = datasets.load_dataset(
        path, revision=revision, split="test" if split == "test" else "train", features=FEATURES
    )
    assert isinstance(rows, datasets.Dataset)
    if split == "test":
        return rows
    boards = {name: _boards(rows, name) for name in ("question", "answer")}
    if not ((boards["answer"] > 0).all()):
        raise ValueError(f"{path}: row {_first(boards['answer'] == 0)} has an answer with empty cells")
    digests = board_digests(boards["question"], boards["answer"])
    held_out = digests % np.uint64(one_in) == 0
    if split == "val":
        return rows.select(np.flatnonzero(held_out))
    chosen = np.flatnonzero(~held_out)
    if num_train is not None:
        smallest = np.argsort(digests[chosen], kind="stable")[:num_train]
        chosen = np.sort(chosen[smallest])
    rows = rows.select(chosen)
    return _with_shuffled(rows, num_shuffles, seed) if num_shuffles else rows


def _boards(rows: datasets.Dataset, column: str) -> Cells:
    """(rows, 81) numbers of a column of boards."""
    texts = cast("list[str]", rows.with_format("arrow")[:][column].to_pylist())
    for index, text in enumerate(texts):
        if len(text) != NUM_CELLS or not text.replace(".", "0").isdigit():
            raise ValueError(f"row {index}: {column} is no board: {text!r}")
    characters = np.frombuffer("".join(texts).replace(".", "0").encode(), dtype=np.uint8)
    return characters.reshape(-1, NUM_CELLS).astype(np.int64) - ord("0")


def _first(wrong: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> int:
    return int(wrong.any(axis=1).argmax())


def _with_shuffled(rows: datasets.Dataset, num_shuffles: int, seed: int) -> datasets.Dataset:
    """Each row, followed by its symmetric copies."""
    boards = np.stack([_boards(rows, name) for name in ("question", "answer")], axis=1)
    columns: dict[str, list[object]] = {name: [] for name in FEATURES}
    for index, row in enumerate(cast("Iterator[SudokuRow]", iter(rows))):
        generator = np.random.default_rng([seed, index])
        copies = [boards[index], *(shuffle_board(boards[index], generator) for _ in range(num_shuffles))]
        for question, answer in copies:
            columns["source"].append(row["source"])
            columns["question"].append(write_board(question))
            columns["answer"].append(write_board(answer))
            columns["rating"].append(row["rating"])
    return datasets.Dataset.from_dict(columns, features=FEATURES)
