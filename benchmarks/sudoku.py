"""Solves puzzles of larsdoku's collection (673 233 hard ones) and times the generator.

    uv run --group slow python benchmarks/sudoku.py --puzzles 5000

Every stored solution must be the only one. Times are CPU time of one process.
"""

import argparse
import gzip
import importlib.metadata
import json
import random
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from xlm.tasks.sudoku_extreme import generated_rows, parse_board, solve, write_board


def collection() -> list[tuple[str, str]]:
    """Puzzles with their stored solutions; read as a file, since the package is not needed for that."""
    file = importlib.metadata.distribution("larsdoku").locate_file("larsdoku/puzzle_collection.json.gz")
    content: dict[str, Any] = json.loads(gzip.decompress(Path(str(file)).read_bytes()))
    entries = [entry for name, entries in content.items() if name != "meta" for entry in entries]
    return [(_puzzle(entry), cast("str", entry["solution"])) for entry in entries]


def _puzzle(entry: dict[str, str]) -> str:
    pairs = zip(entry["mask"], entry["solution"], strict=True)
    return "".join(digit if known == "1" else "." for known, digit in pairs)


def main() -> None:
    """Run both parts and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puzzles", type=int, default=2000)
    parser.add_argument("--boards", type=int, default=2000)
    arguments = parser.parse_args()

    puzzles = random.Random(0).sample(collection(), arguments.puzzles)
    started, guesses = time.process_time(), list[int]()
    for puzzle, solution in puzzles:
        solved = solve(parse_board(puzzle))
        assert write_board(solved.solution) == solution, puzzle
        guesses.append(solved.guesses)
    seconds = time.process_time() - started
    quantiles = np.quantile(guesses, [0, 0.5, 0.9, 1]).astype(int).tolist()
    print(f"{len(puzzles)} puzzles: all stored solutions found and unique")
    print(f"{1000 * seconds / len(puzzles):.2f} ms each; guesses at 0, 50, 90, 100 %: {quantiles}")

    for level, count in {"tiny": arguments.boards, "easy": arguments.boards, "hard": 50}.items():
        started = time.process_time()
        rows = list(generated_rows("train", level=level, num_rows={"train": count}, seed=0))
        seconds = time.process_time() - started
        again = list(generated_rows("train", level=level, num_rows={"train": count}, seed=0, num_proc=2))
        assert rows == again, level
        print(f"{count} {level} boards: {seconds:.2f} s in one process; the same rows from two")


if __name__ == "__main__":
    main()
