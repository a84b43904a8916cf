"""Boards as text and as arrays, the rules, and what makes two boards the same.

A board is 81 characters in reading order (row by row): the digits 1 to 9, and for an empty cell ``.`` or
``0``. The rules speak of 27 *units*: 9 rows, 9 columns, 9 boxes.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

NUM_CELLS: Final = 81
EMPTY_CHARACTERS: Final = ".0"

Cells = npt.NDArray[np.int64]

_GRID = np.arange(NUM_CELLS).reshape(9, 9)
UNITS: Final[Cells] = np.concatenate(
    (_GRID, _GRID.T, _GRID.reshape(3, 3, 3, 3).transpose(0, 2, 1, 3).reshape(9, 9))
)
"""(27, 9) the cells of each unit: rows, columns, boxes."""
_ROW, _COLUMN = np.divmod(np.arange(NUM_CELLS), 9)
_UNITS_OF_CELLS: Final = (
    (slice(0, 9), _ROW),
    (slice(9, 18), _COLUMN),
    (slice(18, 27), _ROW // 3 * 3 + _COLUMN // 3),
)
_ROUNDS: Final = 4


def parse_board(text: str) -> list[int]:
    """Read a board.

    Returns:
        81 numbers, 0 where the cell is empty.

    Raises:
        ValueError: If the text is no board.
    """
    if len(text) != NUM_CELLS or not set(text) <= set("123456789" + EMPTY_CHARACTERS):
        raise ValueError(
            f"a board has {NUM_CELLS} characters out of 1-9, '.' and '0', got {len(text)}: {text[:100]!r}"
        )
    return [0 if character in EMPTY_CHARACTERS else int(character) for character in text]


def write_board(board: npt.ArrayLike) -> str:
    """Write 81 numbers as a board, an empty cell as ``.``."""
    return "".join(map(str, np.asarray(board).tolist())).replace("0", ".")


def is_solution(boards: Cells) -> npt.NDArray[np.bool_]:
    """Whether every unit holds each digit once: (boards, 81) numbers to (boards,)."""
    sorted_units = np.sort(boards[:, UNITS], axis=2)
    return (sorted_units == np.arange(1, 10)).all(axis=(1, 2))


def shuffle_board(boards: Cells, generator: np.random.Generator) -> Cells:
    """Apply one random symmetry of the rules to (boards, 81) boards, the same to all.

    The symmetries permute the digits, the three bands, the rows in a band, the same for columns, and may
    transpose the board. A solution stays a solution; a puzzle keeps its number of solutions.
    """
    digits = np.concatenate(([0], generator.permutation(9) + 1))
    rows, columns = (
        np.concatenate([band * 3 + generator.permutation(3) for band in generator.permutation(3)])
        for _ in range(2)
    )
    cells = _GRID[np.ix_(rows, columns)]
    if generator.random() < 0.5:
        cells = cells.T
    return digits[boards[:, cells.ravel()]]


def board_digests(puzzles: Cells, solutions: Cells) -> npt.NDArray[np.uint64]:
    """A number for each puzzle that no symmetry of the rules changes (see ``shuffle_board``).

    Two puzzles that are the same up to symmetry have the same digest. In principle different ones may share
    one; where rows are given to splits by digest, this costs nothing but a row in another split.

    The digest is the stable colouring of the graph whose nodes are cells, units and digits, hashed: each
    round, a node's colour becomes a hash of its own and the sum of its neighbours', where rows and columns
    count alike.

    Args:
        puzzles: (boards, 81), 0 where empty.
        solutions: (boards, 81)

    Returns:
        (boards,)
    """
    shape = (len(puzzles), 9, 9)
    by_digit = np.argsort(solutions, axis=1, kind="stable")
    cells = _mix(np.where(puzzles > 0, np.uint64(1), np.uint64(2)))
    for _ in range(_ROUNDS):
        in_units = cells[:, UNITS].sum(axis=2)
        row, column, box = (_mix(in_units[:, kind])[:, unit] for kind, unit in _UNITS_OF_CELLS)
        in_digits = np.take_along_axis(cells, by_digit, axis=1).reshape(shape).sum(axis=2)
        digit = np.take_along_axis(_mix(in_digits), solutions - 1, axis=1)
        cells = _mix(cells + _mix(row + column) + box * np.uint64(3) + digit * np.uint64(5))
    return _mix(cells.sum(axis=1, dtype=np.uint64))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection that spreads every bit."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
