"""Rows of the Sudoku data sets, their form as ids, and filters.

A row has the columns of the published set: ``source`` (where the puzzle is from), ``question`` and ``answer``
(boards of 81 characters) and ``rating`` (int; how hard the puzzle is, see the README for the measure).
"""

import logging
from collections.abc import Sequence
from typing import Protocol, TypedDict

import datasets
import numpy as np

from xlm.tasks.sudoku_extreme.boards import is_solution, parse_board
from xlm.tasks.sudoku_extreme.solver import NotUniqueError, solve

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("source", "question", "answer")}
    | {"rating": datasets.Value("int64")}
)
"""The published schema."""

SPLITS = ("train", "val", "test")
_LOG = logging.getLogger(__name__)


class SudokuRow(TypedDict):
    """A puzzle and its solution."""

    source: str
    question: str
    answer: str
    rating: int


class EncodedCells(TypedDict):
    """A row as an infilling problem: the solution's 81 digits, and which of them are clues."""

    target_ids: list[int]
    fixed: list[bool]


class EncodedPrompt(TypedDict):
    """A row as a prompt, the puzzle's 81 cells, and its answer: the missing digits in reading order."""

    prompt_ids: list[int]
    target_ids: list[int]


class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def encode(self, text: str) -> list[int]:
        """Turn names separated by spaces into ids, one per name."""
        ...


def encode_cells(row: SudokuRow, tokenizer: Encoder, *, prove_unique: bool = True) -> EncodedCells | None:
    """Write a row as an infilling problem, without special tokens.

    Args:
        row: Generated here or published.
        tokenizer: Encodes the numbers 0 to 9.
        prove_unique: Whether to solve the puzzle and refuse it if it has several solutions. Without, all that
            is checked is that the answer obeys the rules and keeps the clues.

    Returns:
        81 ids and flags; None for a puzzle that is refused, which a warning names with the reason.
    """
    boards = _read(row, prove_unique=prove_unique)
    if boards is None:
        return None
    puzzle, solution = boards
    return {"target_ids": _encode(solution, tokenizer), "fixed": [digit > 0 for digit in puzzle]}


def encode_prompt(row: SudokuRow, tokenizer: Encoder, *, prove_unique: bool = True) -> EncodedPrompt | None:
    """Write a row as the puzzle (81 ids, number 0 where empty) and the missing digits in reading order.

    The clues are not part of the target, so no model can change them. Arguments and refusals are those of
    ``encode_cells``.
    """
    boards = _read(row, prove_unique=prove_unique)
    if boards is None:
        return None
    puzzle, solution = boards
    missing = [digit for clue, digit in zip(puzzle, solution, strict=True) if not clue]
    return {"prompt_ids": _encode(puzzle, tokenizer), "target_ids": _encode(missing, tokenizer)}


def by_rating(row: SudokuRow, *, minimum: int = 0, maximum: int | None = None) -> bool:
    """Whether the row's ``rating`` is between the bounds, both included."""
    return minimum <= row["rating"] and (maximum is None or row["rating"] <= maximum)


def by_guesses(row: SudokuRow, *, minimum: int = 0, maximum: int | None = None) -> bool:
    """Whether our solver's number of guesses is between the bounds, both included; solves the puzzle.

    A puzzle without a unique solution is kept here, so that it is refused, and counted, by ``encode_cells``.
    """
    try:
        guesses = solve(parse_board(row["question"])).guesses
    except NotUniqueError:
        return True
    return minimum <= guesses and (maximum is None or guesses <= maximum)


def by_source(row: SudokuRow, *, sources: Sequence[str]) -> bool:
    """Whether the puzzle is from one of the ``sources``."""
    return row["source"] in sources


def _read(row: SudokuRow, *, prove_unique: bool) -> tuple[list[int], list[int]] | None:
    """Puzzle and solution; None for a rejected row, which is logged with the reason."""
    puzzle, solution = parse_board(row["question"]), parse_board(row["answer"])
    reason = _fault(puzzle, solution, prove_unique=prove_unique)
    if reason is None:
        return puzzle, solution
    _LOG.warning("puzzle refused (%s): %s, answer %s", reason, row["question"], row["answer"])
    return None


def _fault(puzzle: list[int], solution: list[int], *, prove_unique: bool) -> str | None:
    if not is_solution(np.array([solution]))[0]:
        return "its answer breaks the rules"
    if any(clue not in (0, digit) for clue, digit in zip(puzzle, solution, strict=True)):
        return "its answer changes a clue"
    if prove_unique:
        try:
            solve(puzzle)
        except NotUniqueError as error:
            return str(error)
    return None


def _encode(numbers: Sequence[int], tokenizer: Encoder) -> list[int]:
    return tokenizer.encode(" ".join(map(str, numbers)))


def require_split(split: str, known: Sequence[str]) -> None:
    """Raise a ValueError that lists the ``known`` splits if ``split`` is not one of them."""
    if split not in known:
        raise ValueError(f"unknown split {split!r}: the splits are {', '.join(known)}")
