"""Metrics of filled boards."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xlm.tasks.metrics import Generation, Score, ScoreRatios
from xlm.tasks.sudoku_extreme.boards import NUM_CELLS, UNITS

_DIGITS = set("123456789")
_EMPTY = "0"
_MISSING = ""


class Filled(NamedTuple):
    """What a generation made of its puzzle: 81 entries each, tokens by name."""

    is_clue: list[bool]
    board: list[str]
    """The generated board; empty names where the generation was too short."""
    solution: list[str]
    has_all_cells: bool
    """Whether the generation had exactly the requested tokens."""


def read_filled(generation: Generation) -> Filled:
    """Read a generation in either form of the task.

    With ``fixed`` the generated tokens are the 81 cells. Without, the prompt is the puzzle, and the generated
    tokens go into its empty cells in reading order.

    Raises:
        ValueError: If neither is the case.
    """
    answer, reference = generation["text"].split(), generation["reference"].split()
    if "fixed" in generation:
        is_clue, puzzle = generation["fixed"], [_EMPTY] * NUM_CELLS
        places = range(NUM_CELLS)
    else:
        puzzle = generation["prompt"].split()
        is_clue = [name != _EMPTY for name in puzzle]
        places = [cell for cell, clue in enumerate(is_clue) if not clue]
    if len(is_clue) != NUM_CELLS or len(puzzle) != NUM_CELLS or len(reference) != len(places):
        raise ValueError(
            f"no Sudoku: {len(is_clue)} cells and a reference of {len(reference)} tokens; a puzzle has "
            f"{NUM_CELLS} cells, as prompt or as target with `fixed`"
        )
    return Filled(
        is_clue=is_clue,
        board=_fill(puzzle, places, answer),
        solution=_fill(puzzle, places, reference),
        has_all_cells=len(answer) == len(places),
    )


def _fill(puzzle: Sequence[str], places: Sequence[int], tokens: Sequence[str]) -> list[str]:
    board = list(puzzle)
    for number, cell in enumerate(places):
        board[cell] = tokens[number] if number < len(tokens) else _MISSING
    return board


def board_accuracy(generation: Generation) -> tuple[int, int]:
    """Whether the whole board is the solution and nothing more was generated, out of 1."""
    filled = read_filled(generation)
    return int(filled.has_all_cells and filled.board == filled.solution), 1


def cell_accuracy(generation: Generation) -> tuple[int, int]:
    """Empty cells that were filled with the right digit, out of the empty cells."""
    filled = read_filled(generation)
    cells = [cell for cell, clue in enumerate(filled.is_clue) if not clue]
    return sum(filled.board[cell] == filled.solution[cell] for cell in cells), len(cells)


def broken_clues(generation: Generation) -> tuple[int, int]:
    """Clues that the generated board does not have in their place, out of the clues."""
    filled = read_filled(generation)
    cells = [cell for cell, clue in enumerate(filled.is_clue) if clue]
    return sum(filled.board[cell] != filled.solution[cell] for cell in cells), len(cells)


def rule_violations(generation: Generation) -> tuple[int, int]:
    """Rows, columns and boxes that do not hold each digit once, out of 27; looks at no reference."""
    board = read_filled(generation).board
    units: list[list[int]] = UNITS.tolist()
    return sum({board[cell] for cell in unit} != _DIGITS for unit in units), len(units)


class SudokuMetrics(ScoreRatios):
    """Accumulates the accuracies of boards and cells, broken clues and violated rules.

    ``board_accuracy`` (the main metric), ``cell_accuracy``, ``broken_clues``, ``rule_violations``.
    """

    SCORES: Mapping[str, Score] = {
        "board_accuracy": board_accuracy,
        "cell_accuracy": cell_accuracy,
        "broken_clues": broken_clues,
        "rule_violations": rule_violations,
    }
