import itertools

import numpy as np
import pytest

from xlm.tasks.metrics import Generation
from xlm.tasks.sudoku_extreme import (
    NotUniqueError,
    SudokuMetrics,
    SudokuRow,
    encode_cells,
    encode_prompt,
    is_solution,
    parse_board,
    solve,
    trajectory,
    write_board,
)
from xlm.tasks.tokenizers import NumberTokenizer

from .sudoku_puzzles import HARD, SOLVED, all_solutions, allowed, obeys_rules


@pytest.mark.parametrize("name", SOLVED)
def test_published_puzzles_get_their_published_solutions(name: str) -> None:
    puzzle, solution = SOLVED[name]
    assert write_board(solve(parse_board(puzzle)).solution) == solution


@pytest.mark.parametrize("puzzle", HARD)
def test_hard_puzzles_are_solved_and_rated_hard(puzzle: str) -> None:
    solved = solve(parse_board(puzzle))
    solution = write_board(solved.solution)
    assert obeys_rules(solution)
    assert all(clue in (".", digit) for clue, digit in zip(puzzle, solution, strict=True))
    assert solved.guesses > 50
    assert solve(parse_board(SOLVED["wikipedia"][0])).guesses == 0


@pytest.mark.parametrize("seed", range(8))
def test_uniqueness_agrees_with_plain_search(seed: int) -> None:
    """Random cells are emptied until plain search finds several solutions."""
    solution = SOLVED["ai_escargot"][1]
    order = np.random.default_rng(seed).permutation(81)
    seen: set[bool] = set()
    for size in range(40, 62, 3):
        gone = set(order[:size].tolist())
        puzzle = "".join("." if cell in gone else digit for cell, digit in enumerate(solution))
        is_unique = len(list(itertools.islice(all_solutions(puzzle), 2))) == 1
        seen.add(is_unique)
        if is_unique:
            assert write_board(solve(parse_board(puzzle)).solution) == solution
        else:
            with pytest.raises(NotUniqueError, match="more than one"):
                solve(parse_board(puzzle))
    assert False in seen


@pytest.mark.parametrize(
    "puzzle",
    [
        "11" + "." * 79,
        # Legal clues, but no digit is left for the last cell of the first row.
        "12345678." + "." * 8 + "9" + "." * 63,
        # A swap of two cells far from each other in a solution.
        "435678912672195348198342567859761423426853791713924856961537284287419635345286179",
    ],
)
def test_puzzles_without_solution_are_reported(puzzle: str) -> None:
    with pytest.raises(NotUniqueError, match="no solution"):
        solve(parse_board(puzzle))


@pytest.mark.parametrize("name", SOLVED)
def test_a_trajectory_fills_one_cell_at_a_time_by_the_rules(name: str) -> None:
    puzzle, solution = SOLVED[name]
    boards = [write_board(board) for board in trajectory(parse_board(puzzle), solve(parse_board(puzzle)))]
    assert boards[0] == puzzle
    assert boards[-1] == solution
    assert len(boards) == puzzle.count(".") + 1
    for before, after in itertools.pairwise(boards):
        (cell,) = [cell for cell in range(81) if before[cell] != after[cell]]
        assert before[cell] == "."
        assert after[cell] in allowed(before, cell)


def test_without_guesses_each_move_is_forced() -> None:
    puzzle, _ = SOLVED["wikipedia"]
    boards = [write_board(board) for board in trajectory(parse_board(puzzle), solve(parse_board(puzzle)))]
    for before, after in itertools.pairwise(boards):
        (cell,) = [cell for cell in range(81) if before[cell] != after[cell]]
        only_candidate = allowed(before, cell) == {after[cell]}
        row, column = divmod(cell, 9)
        corner = row // 3 * 27 + column // 3 * 3
        units = (
            [row * 9 + other for other in range(9)],
            [other * 9 + column for other in range(9)],
            [corner + 9 * down + across for down in range(3) for across in range(3)],
        )
        only_place = any(
            all(
                before[other] != "." or other == cell or after[cell] not in allowed(before, other)
                for other in unit
            )
            for unit in units
        )
        assert only_candidate or only_place


def test_rules_agree_with_the_plain_check() -> None:
    solutions = [solution for _, solution in SOLVED.values()]
    swapped = [solution[1] + solution[0] + solution[2:] for solution in solutions]
    found = is_solution(np.array([parse_board(board) for board in solutions + swapped])).tolist()
    assert found == [obeys_rules(board) for board in solutions + swapped] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("text", ["", "1" * 80, "1" * 82, "x" + "1" * 80])
def test_what_is_no_board_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="81 characters"):
        parse_board(text)


# Metrics


TOKENIZER = NumberTokenizer(10)
PUZZLE, SOLUTION = SOLVED["wikipedia"]
NUM_EMPTY = PUZZLE.count(".")


def generation(board: str, *, form: str = "cells", length: int | None = None) -> Generation:
    """What a model made of the puzzle: `board`, of which the prompt form holds the empty cells only."""
    row: SudokuRow = {"source": "", "question": PUZZLE, "answer": SOLUTION, "rating": 0}
    cells, prompted = encode_cells(row, TOKENIZER), encode_prompt(row, TOKENIZER)
    assert cells is not None
    assert prompted is not None
    prompt = [] if form == "cells" else prompted["prompt_ids"]
    target = cells["target_ids"] if form == "cells" else prompted["target_ids"]
    written = [digit for digit, clue in zip(board, PUZZLE, strict=True) if form == "cells" or clue == "."]
    ids = TOKENIZER.encode(" ".join(written))[:length]
    made = Generation(
        prompt_ids=prompt,
        ids=ids,
        reference_ids=target,
        prompt=TOKENIZER.decode(prompt),
        text=TOKENIZER.decode(ids),
        reference=TOKENIZER.decode(target),
    )
    if form == "cells":
        made["fixed"] = cells["fixed"]
    return made


def scores(*generations: Generation) -> dict[str, float]:
    metrics = SudokuMetrics()
    for each in generations:
        metrics.update([each])
    return metrics.compute()


@pytest.mark.parametrize("form", ["cells", "prompt"])
def test_a_solved_board_is_right_in_every_respect(form: str) -> None:
    assert scores(generation(SOLUTION, form=form)) == {
        "board_accuracy": 1.0,
        "cell_accuracy": 1.0,
        "broken_clues": 0.0,
        "rule_violations": 0.0,
    }


@pytest.mark.parametrize("form", ["cells", "prompt"])
def test_one_wrong_cell_costs_the_board_and_three_units(form: str) -> None:
    cell = PUZZLE.index(".")
    board = SOLUTION[:cell] + ("1" if SOLUTION[cell] != "1" else "2") + SOLUTION[cell + 1 :]
    assert scores(generation(board, form=form), generation(SOLUTION, form=form)) == {
        "board_accuracy": 0.5,
        "cell_accuracy": (2 * NUM_EMPTY - 1) / (2 * NUM_EMPTY),
        "broken_clues": 0.0,
        "rule_violations": 3 / 54,
    }


def test_a_changed_clue_is_counted_apart_from_the_cells() -> None:
    assert PUZZLE[0] == "5"
    found = scores(generation("9" + SOLUTION[1:]))
    assert found["broken_clues"] == 1 / (81 - NUM_EMPTY)
    assert found["cell_accuracy"] == 1.0
    assert found["board_accuracy"] == 0.0


@pytest.mark.parametrize("form", ["cells", "prompt"])
def test_what_is_missing_is_wrong(form: str) -> None:
    short = scores(generation(SOLUTION, form=form, length=-1))
    assert short["board_accuracy"] == 0.0
    assert short["rule_violations"] == 3 / 27
    # The last cell is a clue: part of the text where cells are generated, and given where they are not.
    assert PUZZLE[-1] != "."
    assert short["broken_clues"] == (1 / (81 - NUM_EMPTY) if form == "cells" else 0.0)
    nothing = scores(generation(SOLUTION, form=form, length=0))
    assert nothing["cell_accuracy"] == 0.0
    assert nothing["rule_violations"] == 1.0


@pytest.mark.parametrize("form", ["cells", "prompt"])
def test_a_board_with_something_behind_it_is_not_right(form: str) -> None:
    longer = generation(SOLUTION, form=form)
    longer["text"] += " 1"
    assert scores(longer)["board_accuracy"] == 0.0
    assert scores(longer)["cell_accuracy"] == 1.0


def test_what_is_no_digit_breaks_the_rules() -> None:
    masked = generation(SOLUTION)
    masked["text"] = masked["text"].replace("1", "[MASK]")
    assert scores(masked)["rule_violations"] == 1.0


def test_other_tasks_are_distinguished_from_sudoku() -> None:
    other = generation(SOLUTION, form="prompt")
    other["prompt"] = "1 2 3"
    with pytest.raises(ValueError, match="no Sudoku: 3 cells"):
        scores(other)


def test_sums_of_two_processes_add_up() -> None:
    first, second, both = SudokuMetrics(), SudokuMetrics(), SudokuMetrics()
    wrong, right = generation("1" * 81, form="prompt"), generation(SOLUTION, form="prompt")
    first.update([wrong])
    second.update([right, right])
    both.update([wrong, right, right])
    assert {name: first.sums[name] + second.sums[name] for name in both.sums} == both.sums
    both.reset()
    assert both.compute() == dict.fromkeys(both.compute(), 0.0)
