"""Public puzzles, and a second opinion on solutions: the plainest search there is."""

from collections.abc import Iterator

# Published with their solutions: the example of Wikipedia's article, two puzzles of Arto Inkala (2006, 2012).
SOLVED = {
    "wikipedia": (
        "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
        "534678912672195348198342567859761423426853791713924856961537284287419635345286179",
    ),
    "ai_escargot": (
        "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3..",
        "162857493534129678789643521475312986913586742628794135356478219241935867897261354",
    ),
    "inkala_2012": (
        "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
        "812753649943682175675491283154237896369845721287169534521974368438526917796318452",
    ),
}
# Known to be hard: Golden Nugget, Easter Monster, and the first of the top-1465 list.
HARD = [
    ".......39....1...5..3..58....8..9..6.7..2....1..4.......9..8.5..2....6..4..7.....",
    "1.......2.9.4...5...6...7...5.9.3.......7.......85..4.7.....6...3...9.8...2.....1",
    "4...3.......6..8..........1....5..9..8....6...7.2........1.27..5.3....4.9........",
]


def allowed(board: str, cell: int) -> set[str]:
    """Digits that no row, column or box of the cell holds."""
    row, column = divmod(cell, 9)
    seen = {board[row * 9 + other] for other in range(9)} | {board[other * 9 + column] for other in range(9)}
    corner = row // 3 * 27 + column // 3 * 3
    seen |= {board[corner + 9 * down + across] for down in range(3) for across in range(3)}
    return set("123456789") - seen


def all_solutions(board: str) -> Iterator[str]:
    """Every solution, by trying the digits of the first of the most restricted cells."""
    empty = [cell for cell in range(81) if board[cell] == "."]
    if not empty:
        yield board
        return
    cell = min(empty, key=lambda cell: len(allowed(board, cell)))
    for digit in sorted(allowed(board, cell)):
        yield from all_solutions(board[:cell] + digit + board[cell + 1 :])


def obeys_rules(board: str) -> bool:
    """Whether each cell's digit would be allowed if it were empty."""
    return all(board[cell] in allowed(board[:cell] + "." + board[cell + 1 :], cell) for cell in range(81))
