"""A solver that proves that a puzzle has exactly one solution, and measures its difficulty.

The state of a search is nine bitboards, one per digit: bit c is set while the digit may still stand in cell
c. With them a step looks at all 81 cells at once: which have no candidate left, which have one, which more.

The search is deterministic. It first makes all *forced* moves (a cell with one candidate, or a digit with one
place in a unit) until there is none, and then *guesses*: it takes the cell with the fewest candidates, the
first of them in reading order, and tries its candidates in ascending order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xlm.tasks.sudoku_extreme.boards import NUM_CELLS, UNITS

_ALL = (1 << NUM_CELLS) - 1
_UNIT_BITS = [sum(1 << cell for cell in unit) for unit in UNITS.tolist()]
_PEER_BITS = [
    sum({1 << other for unit in UNITS.tolist() if cell in unit for other in unit})
    for cell in range(NUM_CELLS)
]


@dataclass(frozen=True)
class Solved:
    """A puzzle with one solution."""

    solution: list[int]
    """81 digits."""
    order: list[int]
    """The empty cells in the order in which the search filled them on its way to the solution."""
    guesses: int
    """Candidates tried at cells with several, until the proof was complete: 0 if every move is forced."""


class NotUniqueError(ValueError):
    """A puzzle with no solution, or with several."""


@dataclass
class _Search:
    """Depth first, until there are ``limit`` solutions."""

    limit: int
    guesses: int = 0

    def __post_init__(self) -> None:
        self.found: list[tuple[list[int], list[int]]] = []

    def run(self, candidates: list[int], empty: int, order: list[int]) -> None:
        """Look below a state, which is used up: ``candidates`` by digit, the cells yet to fill."""
        empty = _propagate(candidates, empty, order)
        if empty < 0:
            return
        if not empty:
            self.found.append((candidates, order))
            return
        cell = _fewest_candidates(candidates, empty)
        for digit in range(9):
            if candidates[digit] >> cell & 1:
                self.guesses += 1
                branch, path = candidates.copy(), order.copy()
                self.run(branch, _place(branch, empty, cell, digit, path), path)
                if len(self.found) >= self.limit:
                    return


def solve(puzzle: Sequence[int]) -> Solved:
    """Solve a puzzle and prove that there is no other solution.

    Args:
        puzzle: 81 numbers, 0 where empty.

    Raises:
        NotUniqueError: If there is no solution or more than one.
    """
    search = _search(puzzle, limit=2)
    if len(search.found) != 1:
        raise NotUniqueError("no solution" if not search.found else "more than one solution")
    placed, order = search.found[0]
    return Solved(solution=_read(placed), order=order, guesses=search.guesses)


def first_solution(puzzle: Sequence[int]) -> list[int]:
    """The first solution in the order of the search, whether or not there are others.

    Raises:
        NotUniqueError: If there is none.
    """
    search = _search(puzzle, limit=1)
    if not search.found:
        raise NotUniqueError("no solution")
    return _read(search.found[0][0])


def trajectory(puzzle: Sequence[int], solved: Solved) -> Iterator[list[int]]:
    """The boards on the way from the puzzle to its solution, one more cell filled in each; both included."""
    board = list(puzzle)
    yield list(board)
    for cell in solved.order:
        board[cell] = solved.solution[cell]
        yield list(board)


def _search(puzzle: Sequence[int], *, limit: int) -> _Search:
    search, candidates, empty = _Search(limit), [_ALL] * 9, _ALL
    for cell, digit in enumerate(puzzle):
        if digit:
            if not candidates[digit - 1] >> cell & 1:
                return search
            empty = _place(candidates, empty, cell, digit - 1, [])
    search.run(candidates, empty, [])
    return search


def _read(candidates: list[int]) -> list[int]:
    """The 81 digits of a full board."""
    return [digit for cell in range(NUM_CELLS) for digit in range(1, 10) if candidates[digit - 1] >> cell & 1]


def _place(candidates: list[int], empty: int, cell: int, digit: int, order: list[int]) -> int:
    """Put a digit (0 to 8) into a cell; the cells that remain empty."""
    bit = 1 << cell
    kept = ~bit
    placed = candidates[digit]
    for other in range(9):
        candidates[other] &= kept
    candidates[digit] = placed & ~_PEER_BITS[cell] | bit
    order.append(cell)
    return empty & kept


def _propagate(candidates: list[int], empty: int, order: list[int]) -> int:
    """Make forced moves while there are any; the cells that remain empty, or -1 for a contradiction."""
    while empty:
        once, twice = _counts(candidates)
        if empty & ~once:
            return -1
        if single := empty & once & ~twice:
            while single:
                cell = (single & -single).bit_length() - 1
                single &= single - 1
                digit = next((digit for digit in range(9) if candidates[digit] >> cell & 1), -1)
                if digit < 0:
                    return -1
                empty = _place(candidates, empty, cell, digit, order)
            continue
        found = _only_place(candidates, empty)
        if found is None:
            return empty
        if found[0] < 0:
            return -1
        empty = _place(candidates, empty, *found, order)
    return empty


def _counts(candidates: list[int]) -> tuple[int, int]:
    """Cells with at least one candidate, and with at least two."""
    once = twice = 0
    for places in candidates:
        twice |= once & places
        once |= places
    return once, twice


def _only_place(candidates: list[int], empty: int) -> tuple[int, int] | None:
    """A cell and the digit that has no other place in a unit; (-1, -1) if a digit has no place at all."""
    for digit, places in enumerate(candidates):
        for unit in _UNIT_BITS:
            inside = places & unit
            if not inside:
                return -1, -1
            if not inside & (inside - 1) and inside & empty:
                return inside.bit_length() - 1, digit
    return None


def _fewest_candidates(candidates: list[int], empty: int) -> int:
    # at_least[k] is the set of cells with more than k candidates.
    at_least = [0] * 10
    for places in candidates:
        for count in range(8, 0, -1):
            at_least[count] |= at_least[count - 1] & places
        at_least[0] |= places
    fewest = next(
        cells for count in range(1, 10) if (cells := empty & at_least[count - 1] & ~at_least[count])
    )
    return (fewest & -fewest).bit_length() - 1
