import concurrent.futures
from pathlib import Path
from typing import Protocol, cast

import datasets
import numpy as np
import pytest

from xlm.tasks.sudoku_extreme import (
    LEVELS,
    Level,
    SudokuRow,
    board_digests,
    by_guesses,
    by_rating,
    by_source,
    encode_cells,
    encode_prompt,
    generated_rows,
    parse_board,
    published_rows,
    shuffle_board,
    solve,
    write_board,
)
from xlm.tasks.tokenizers import NumberTokenizer

from .sudoku_puzzles import HARD, SOLVED, all_solutions, obeys_rules

TOKENIZER = NumberTokenizer(10)


class Encode(Protocol):
    def __call__(
        self, row: SudokuRow, tokenizer: NumberTokenizer, *, prove_unique: bool = True
    ) -> object: ...


MIXED = Level(min_empty=20, max_empty=45)


def rows_of(split: str, level: str | Level, count: int, seed: int = 0, num_proc: int = 1) -> list[SudokuRow]:
    return list(generated_rows(split, level=level, num_rows={split: count}, seed=seed, num_proc=num_proc))


def changed(row: SudokuRow, *, question: str, answer: str) -> SudokuRow:
    return {**row, "question": question, "answer": answer}


def boards(rows: list[SudokuRow], column: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([parse_board(str(row[column])) for row in rows])


def digests(rows: list[SudokuRow]) -> list[int]:
    return board_digests(boards(rows, "question"), boards(rows, "answer")).tolist()


@pytest.fixture(scope="module")
def rows() -> list[SudokuRow]:
    return rows_of("train", MIXED, 300)


# ---- generated ----------------------------------------------------------------------------------------


def test_generated_puzzles_have_one_solution_and_need_no_guess(rows: list[SudokuRow]) -> None:
    for row in rows[:40]:
        assert list(all_solutions(row["question"])) == [row["answer"]]
    assert all(obeys_rules(row["answer"]) for row in rows)
    assert {row["rating"] for row in rows} == {0}
    assert {solve(parse_board(row["question"])).guesses for row in rows} == {0}


def test_levels_keep_their_numbers_of_empty_cells(rows: list[SudokuRow]) -> None:
    empty = [row["question"].count(".") for row in rows]
    assert min(empty) >= 20
    assert max(empty) <= 45
    assert len(set(empty)) > 15
    tiny = LEVELS["tiny"]
    assert all(
        tiny.min_empty <= row["question"].count(".") <= tiny.max_empty for row in rows_of("test", "tiny", 20)
    )


def test_hard_puzzles_are_minimal_and_as_hard_as_asked() -> None:
    [row] = rows_of("val", Level(81, 81, min_guesses=4), 1)
    solved = solve(parse_board(row["question"]))
    assert row["rating"] == solved.guesses >= 4
    for cell, clue in enumerate(row["question"]):
        if clue != ".":
            spared = row["question"][:cell] + "." + row["question"][cell + 1 :]
            assert len([board for board, _ in zip(all_solutions(spared), range(2), strict=False)]) == 2


def test_rows_depend_on_the_seed_and_not_on_the_workers(
    rows: list[SudokuRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads in place of processes, which take seconds to start.
    def threads(workers: int, mp_context: object) -> concurrent.futures.Executor:
        return concurrent.futures.ThreadPoolExecutor(workers)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", threads)
    assert rows_of("train", MIXED, 50, num_proc=3) == rows[:50]
    assert rows_of("train", MIXED, 50, seed=1) != rows[:50]


def test_no_puzzle_is_in_two_splits_whatever_the_seed(rows: list[SudokuRow]) -> None:
    found = {split: set(digests(rows_of(split, "tiny", 60, seed=5))) for split in ("val", "test")}
    assert len(found["val"]) == len(found["test"]) == 60
    assert not found["val"] & found["test"]
    assert not (found["val"] | found["test"]) & set(digests(rows))
    assert {digest % 4 for digest in digests(rows)} == {0, 1}


def test_unknown_levels_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown level 'tine'.*tiny"):
        rows_of("train", "tine", 1)
    with pytest.raises(ValueError, match=r"unknown split 'dev'.*train"):
        list(generated_rows("dev", level="tiny", num_rows={"train": 1}, seed=0))


# ---- symmetry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_digests_know_puzzles_again_after_any_symmetry(rows: list[SudokuRow], seed: int) -> None:
    both = np.concatenate([boards(rows, "question"), boards(rows, "answer")])
    puzzles, solutions = np.split(shuffle_board(both, np.random.default_rng(seed)), 2)
    assert board_digests(puzzles, solutions).tolist() == digests(rows)
    assert obeys_rules(write_board(solutions[0]))
    assert list(all_solutions(write_board(puzzles[0]))) == [write_board(solutions[0])]
    assert write_board(puzzles[0]) != rows[0]["question"]


def test_digests_tell_puzzles_apart(rows: list[SudokuRow]) -> None:
    assert len(set(digests(rows))) == len(rows)
    # The same solution with one clue more.
    puzzles, solutions = boards(rows, "question"), boards(rows, "answer")
    first_empty = (puzzles == 0).argmax(axis=1)
    puzzles[np.arange(len(rows)), first_empty] = solutions[np.arange(len(rows)), first_empty]
    assert not set(board_digests(puzzles, solutions).tolist()) & set(digests(rows))


# ---- published ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["csv", "parquet"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: list[SudokuRow]
) -> str:
    """A local copy in the published layout; every training puzzle stands there twice, up to symmetry."""
    folder = tmp_path_factory.mktemp(request.param)
    generator = np.random.default_rng(1)
    train: list[SudokuRow] = []
    for row in rows[:120]:
        twin = shuffle_board(np.array([parse_board(row["question"]), parse_board(row["answer"])]), generator)
        train.append(row)
        train.append(changed(row, question=write_board(twin[0]), answer=write_board(twin[1])))
    answer = write_board(solve(parse_board(HARD[0])).solution)
    train.append({"source": "hard", "question": HARD[0], "answer": answer, "rating": 99})
    for name, content in {"train": train, "test": rows[200:210]}.items():
        table = datasets.Dataset.from_list([dict(row) for row in content])
        if request.param == "csv":
            table.to_csv(folder / f"{name}.csv")
        else:
            table.to_parquet(folder / f"{name}.parquet")
    return str(folder)


def read(path: str, split: str, *, num_train: int | None = None, num_shuffles: int = 0) -> list[SudokuRow]:
    found = published_rows(split, path=path, one_in=3, num_train=num_train, num_shuffles=num_shuffles)
    return cast("list[SudokuRow]", found.to_list())


def test_validation_is_held_out_of_train_up_to_symmetry(published: str, rows: list[SudokuRow]) -> None:
    train, val, test = (read(published, split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 241
    assert 20 < len(val) < 110
    assert not set(digests(train)) & set(digests(val))
    assert set(digests(train)) | set(digests(val)) >= set(digests(rows[:120]))
    assert test == rows[200:210]


def test_a_training_subset_has_the_smallest_digests(published: str) -> None:
    some = read(published, "train", num_train=20)
    assert len(some) == 20
    assert max(digests(some)) <= min(set(digests(read(published, "train"))) - set(digests(some)))


def test_symmetric_copies_are_added_to_train_only(published: str) -> None:
    plain, more = (
        read(published, "train", num_train=10),
        read(published, "train", num_train=10, num_shuffles=3),
    )
    assert more[::4] == plain
    assert len({row["question"] for row in more}) == 40
    assert digests(more) == [digest for digest in digests(plain) for _ in range(4)]
    assert all(obeys_rules(row["answer"]) for row in more)
    assert read(published, "val", num_shuffles=3) == read(published, "val")


def test_what_is_no_board_is_refused_with_its_row(tmp_path: Path) -> None:
    bad = [
        {"source": "x", "question": "1" * 81, "answer": answer, "rating": 0}
        for answer in ("2" * 81, "2" * 80)
    ]
    datasets.Dataset.from_list(bad).to_csv(tmp_path / "train.csv")
    with pytest.raises(ValueError, match="row 1: answer is no board"):
        published_rows("train", path=str(tmp_path))


# ---- encoded ------------------------------------------------------------------------------------------


def test_cells_are_the_solution_with_its_clues_marked() -> None:
    puzzle, solution = SOLVED["ai_escargot"]
    encoded = encode_cells({"source": "", "question": puzzle, "answer": solution, "rating": 0}, TOKENIZER)
    assert encoded is not None
    assert TOKENIZER.decode(encoded["target_ids"]).replace(" ", "") == solution
    assert encoded["fixed"] == [clue != "." for clue in puzzle]


def test_prompt_and_answer_make_the_solution() -> None:
    puzzle, solution = SOLVED["ai_escargot"]
    encoded = encode_prompt({"source": "", "question": puzzle, "answer": solution, "rating": 0}, TOKENIZER)
    assert encoded is not None
    assert TOKENIZER.decode(encoded["prompt_ids"]).replace(" ", "") == puzzle.replace(".", "0")
    answer = iter(TOKENIZER.decode(encoded["target_ids"]).split())
    assert "".join(next(answer) if clue == "." else clue for clue in puzzle) == solution
    assert next(answer, None) is None


@pytest.mark.parametrize("encode", [encode_cells, encode_prompt])
def test_puzzles_without_a_unique_solution_are_refused_and_named(
    encode: Encode, caplog: pytest.LogCaptureFixture
) -> None:
    puzzle, solution = SOLVED["wikipedia"]
    right: SudokuRow = {"source": "", "question": puzzle, "answer": solution, "rating": 0}
    several: SudokuRow = {**right, "question": "." * 60 + solution[60:]}
    wrong: SudokuRow = {**right, "answer": solution[1] + solution[0] + solution[2:]}
    other: SudokuRow = {**right, "answer": SOLVED["ai_escargot"][1]}
    assert encode(right, TOKENIZER) is not None
    assert [encode(row, TOKENIZER) for row in (several, wrong, other)] == [None, None, None]
    warnings = [record.getMessage() for record in caplog.records]
    reasons = ("more than one solution", "its answer breaks the rules", "its answer changes a clue")
    for message, reason, row in zip(warnings, reasons, (several, wrong, other), strict=True):
        assert reason in message
        assert row["question"] in message
    assert encode(several, TOKENIZER, prove_unique=False) is not None
    assert [encode(row, TOKENIZER, prove_unique=False) for row in (wrong, other)] == [None, None]


def test_filters_choose_by_rating_guesses_and_source() -> None:
    easy: SudokuRow = {"source": "a", "question": SOLVED["wikipedia"][0], "answer": "", "rating": 0}
    hard: SudokuRow = {"source": "b", "question": HARD[0], "answer": "", "rating": 70}
    open_: SudokuRow = {"source": "c", "question": "." * 81, "answer": "", "rating": 7}
    rows = (easy, hard, open_)
    assert [by_rating(row, minimum=7) for row in rows] == [False, True, True]
    assert [by_rating(row, maximum=7) for row in rows] == [True, False, True]
    assert [by_guesses(row, minimum=1) for row in rows] == [False, True, True]
    assert [by_guesses(row, maximum=9) for row in rows] == [True, False, True]
    assert [by_source(row, sources=["a", "c"]) for row in rows] == [True, False, True]
