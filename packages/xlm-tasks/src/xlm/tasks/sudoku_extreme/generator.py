"""Puzzles with one solution, made from random solutions by taking clues away.

Easy puzzles are made many at a time: a clue is taken away only if it is at once forced by those that remain
(its cell has no other candidate, or its digit no other place in a unit). Read backwards, the removals are a
way to the solution without any guess, which also proves that there is no other solution. Hard puzzles are
made one at a time with the solver: clues are taken away as long as the solution stays the only one.
"""

import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xlm.tasks.sudoku_extreme.boards import NUM_CELLS, UNITS, Cells, board_digests, shuffle_board, write_board
from xlm.tasks.sudoku_extreme.dataset import SPLITS, SudokuRow, require_split
from xlm.tasks.sudoku_extreme.solver import NotUniqueError, first_solution, solve

_DIAGONAL_BOXES = UNITS[[18, 22, 26]]
_UNITS_OF_CELL = np.array([[unit for unit in range(27) if cell in UNITS[unit]] for cell in range(NUM_CELLS)])


_BLOCK = 64
"""Boards drawn at a time. The rows depend on this number as they do on the seed."""


@dataclass(frozen=True)
class Level:
    """What generated puzzles are like."""

    min_empty: int
    max_empty: int
    """Empty cells: uniform between the two (fewer if no more clue can be removed)."""
    min_guesses: int = 0
    """0: every move is forced (``dig_forced``). Above 0: a minimum for minimal puzzles (``dig_minimal``)."""


LEVELS = {
    "tiny": Level(min_empty=4, max_empty=16),
    "easy": Level(min_empty=30, max_empty=50),
    "hard": Level(min_empty=NUM_CELLS, max_empty=NUM_CELLS, min_guesses=10),
}


def generated_rows(
    split: str, *, level: str | Level, num_rows: Mapping[str, int], seed: int, num_proc: int = 1
) -> Iterator[SudokuRow]:
    """Generate puzzles with one solution; ``rating`` is the solver's number of guesses.

    The rows depend on (split, level, seed) only, not on the number of processes, and a longer split begins
    with the rows of a shorter one. The digest of a puzzle determines its split (train, val, test = 2 : 1 :
    1), so no puzzle is in two splits, not even up to symmetry, for any seeds and levels.

    Args:
        split: "train", "val" or "test".
        level: A name in ``LEVELS``, or your own level.
        num_rows: Rows of each split.
        seed: Not negative.
        num_proc: Processes that generate.

    Raises:
        ValueError: If the split or the level is unknown.
    """
    require_split(split, [name for name in SPLITS if name in num_rows])
    if isinstance(level, str) and level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: the levels are {', '.join(LEVELS)}")
    blocks = _blocks(split, LEVELS[level] if isinstance(level, str) else level, seed, num_proc)
    source = f"generated_{level}" if isinstance(level, str) else "generated"
    for puzzle, solution, guesses in itertools.islice(itertools.chain.from_iterable(blocks), num_rows[split]):
        yield {
            "source": source,
            "question": write_board(puzzle),
            "answer": write_board(solution),
            "rating": guesses,
        }


def draw_solutions(count: int, generator: np.random.Generator) -> Cells:
    """Draw solutions: three independent boxes on the diagonal, the rest by search, then a random symmetry.

    Every class of solutions can be drawn; the classes are not equally likely.

    Returns:
        (count, 81)
    """
    solutions = np.empty((count, NUM_CELLS), dtype=np.int64)
    for row in range(count):
        board = np.zeros(NUM_CELLS, dtype=np.int64)
        for box in _DIAGONAL_BOXES:
            board[box] = generator.permutation(9) + 1
        filled = np.array([first_solution(board.tolist())])
        solutions[row] = shuffle_board(filled, generator)[0]
    return solutions


def dig_forced(solutions: Cells, num_empty: Cells, generator: np.random.Generator) -> Cells:
    """Remove clues in random order, only those that the others force at once.

    Args:
        solutions: (boards, 81)
        num_empty: (boards,) cells to empty; fewer where no more can be emptied.
        generator: Source of the order.

    Returns:
        (boards, 81) puzzles, 0 where empty.
    """
    puzzles = solutions.copy()
    board = np.arange(len(puzzles))
    # Bit d of used[b, u] is set if digit d is a clue in unit u.
    used = np.bitwise_or.reduce(1 << puzzles[:, UNITS], axis=2)
    for cell in generator.random(puzzles.shape).argsort(axis=1).T:
        units = _UNITS_OF_CELL[cell]
        bit = 1 << puzzles[board, cell]
        used[board[:, None], units] ^= bit[:, None]
        candidates = 0b1111111110 & ~np.bitwise_or.reduce(used[board[:, None], units], axis=1)
        forced = (candidates == bit) | _is_only_place(puzzles, used, units, cell, bit)
        remove = forced & ((puzzles == 0).sum(axis=1) < num_empty)
        puzzles[board[remove], cell[remove]] = 0
        used[board[~remove, None], units[~remove]] |= bit[~remove, None]
    return puzzles


def _is_only_place(
    puzzles: Cells, used: Cells, units: Cells, cell: Cells, bit: Cells
) -> npt.NDArray[np.bool_]:
    """(boards,) whether the digit ``bit`` has no place but ``cell`` in one of the three ``units``."""
    board = np.arange(len(puzzles))
    places = UNITS[units]
    across = used[board[:, None, None, None], _UNITS_OF_CELL[places]]
    excluded = (np.bitwise_or.reduce(across, axis=3) & bit[:, None, None]) > 0
    filled = puzzles[board[:, None, None], places] > 0
    itself = places == cell[:, None, None]
    return (excluded | filled | itself).all(axis=2).any(axis=1)


def dig_minimal(solution: Cells, generator: np.random.Generator) -> Cells:
    """Remove clues in random order until the puzzle is minimal: one (81,) puzzle of one (81,) solution."""
    puzzle: list[int] = solution.tolist()
    order: list[int] = generator.permutation(NUM_CELLS).tolist()
    for cell in order:
        digit, puzzle[cell] = puzzle[cell], 0
        try:
            solve(puzzle)
        except NotUniqueError:
            puzzle[cell] = digit
    return np.array(puzzle)


_Puzzle = tuple[list[int], list[int], int]


def _blocks(split: str, level: Level, seed: int, num_proc: int) -> Iterator[list[_Puzzle]]:
    """An endless stream of blocks of puzzles, the same for any number of processes."""
    numbers = itertools.count()
    if num_proc == 1:
        yield from (_block(split, level, seed, number) for number in numbers)
    # Threads may be running here (Arrow's, torch's), which a forked process would not survive.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_proc, mp_context=context) as pool:
        while True:
            some = list(itertools.islice(numbers, num_proc))
            yield from pool.map(_block, *zip(*((split, level, seed, number) for number in some), strict=True))


def _block(split: str, level: Level, seed: int, number: int) -> list[_Puzzle]:
    """The puzzles of one block that belong to the split and the level."""
    generator = np.random.default_rng([seed, SPLITS.index(split), number])
    solutions = draw_solutions(_BLOCK, generator)
    if level.min_guesses:
        puzzles = np.stack([dig_minimal(solution, generator) for solution in solutions])
    else:
        num_empty = generator.integers(level.min_empty, level.max_empty, size=_BLOCK, endpoint=True)
        puzzles = dig_forced(solutions, num_empty, generator)
    quarter = board_digests(puzzles, solutions) % np.uint64(4)
    chosen = np.isin(quarter, {"train": (0, 1), "val": (2,), "test": (3,)}[split])
    found: list[_Puzzle] = []
    for puzzle, solution in zip(puzzles[chosen].tolist(), solutions[chosen].tolist(), strict=True):
        guesses = solve(puzzle).guesses if level.min_guesses else 0
        if guesses >= level.min_guesses:
            found.append((puzzle, solution, guesses))
    return found
