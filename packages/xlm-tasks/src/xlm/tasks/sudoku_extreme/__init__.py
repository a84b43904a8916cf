"""Sudoku: fill in the empty cells of a board, so that every row, column and box holds the digits 1 to 9."""

from xlm.tasks.sudoku_extreme.boards import (
    board_digests,
    is_solution,
    parse_board,
    shuffle_board,
    write_board,
)
from xlm.tasks.sudoku_extreme.dataset import (
    SudokuRow,
    by_guesses,
    by_rating,
    by_source,
    encode_cells,
    encode_prompt,
)
from xlm.tasks.sudoku_extreme.generator import LEVELS, Level, generated_rows
from xlm.tasks.sudoku_extreme.metrics import SudokuMetrics
from xlm.tasks.sudoku_extreme.published import published_rows
from xlm.tasks.sudoku_extreme.solver import NotUniqueError, Solved, solve, trajectory

__all__ = [
    "LEVELS",
    "Level",
    "NotUniqueError",
    "Solved",
    "SudokuMetrics",
    "SudokuRow",
    "board_digests",
    "by_guesses",
    "by_rating",
    "by_source",
    "encode_cells",
    "encode_prompt",
    "generated_rows",
    "is_solution",
    "parse_board",
    "published_rows",
    "shuffle_board",
    "solve",
    "trajectory",
    "write_board",
]
