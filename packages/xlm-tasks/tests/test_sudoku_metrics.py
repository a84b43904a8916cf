import pytest

from xlm.tasks.metrics import Generation
from xlm.tasks.sudoku_extreme import SudokuMetrics, SudokuRow, encode_cells, encode_prompt
from xlm.tasks.tokenizers import NumberTokenizer

from .sudoku_puzzles import SOLVED

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
