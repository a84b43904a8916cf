"""Breaks the code at one place at a time: a test that the list names for the place must fail.

    python tests/mutants/run.py             # every list
    python tests/mutants/run.py bd3lm udlm  # these

``NAME.toml`` lists mutants of ``packages/xlm-NAME``, one ``[[mutant]]`` each:

    trap    what goes wrong, in a sentence
    file    the file, below that folder
    old     text that stands in it once
    new     what a mutant has in its place
    test    the tests, of which one must fail: arguments of pytest, below that folder, between spaces

A mutant is a copy of the sources, first on the path of a process of its own; the working tree is never
written to. The exit status is 1 if a mutant survives, or a test fails without any.
"""

import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import torch  # once: the processes below are forks of this one

ROOT = Path(__file__).parents[2]
LISTS = sorted(Path(__file__).parent.glob("*.toml"))

Mutant = dict[str, str]


def mutants_of(path: Path) -> list[Mutant]:
    """The entries of a list, with their files and tests as paths of the repository."""
    folder = f"packages/xlm-{path.stem}"
    entries: list[Mutant] = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [
        entry
        | {
            "file": f"{folder}/{entry['file']}",
            "test": " ".join(f"{folder}/{test}" for test in entry["test"].split()),
        }
        for entry in entries
    ]


def write(mutant: Mutant, folder: Path) -> None:
    """Copy the sources that a mutant changes into a folder, and change them."""
    path = Path(mutant["file"])
    sources = ROOT.joinpath(*path.parts[:3])
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count(mutant["old"]) == 1, f"not once in {path}: {mutant['old']}"
    shutil.copytree(sources, folder)
    (folder / Path(*path.parts[3:])).write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")


def run_tests(tests: list[str], log: Path, sources: Path | None = None) -> int:
    """What pytest returns in a process of its own: 0 if the tests pass, 1 if one fails."""
    process = os.fork()
    if process > 0:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if sources is not None:
        sys.path.insert(0, str(sources))
    os._exit(pytest.main(["-x", "-q", "-m", "", "-p", "no:cacheprovider", *tests]))


def run_list(path: Path) -> bool:
    """Run the mutants of a list, and print a line for each; returns whether all is well."""
    mutants, name, killed = mutants_of(path), path.stem, 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        if run_tests(sorted({test for mutant in mutants for test in mutant["test"].split()}), log) != 0:
            print(log.read_text(), f"{name}: a test fails without a mutant", sep="\n")
            return False
    for number, mutant in enumerate(mutants, start=1):
        with tempfile.TemporaryDirectory() as folder:
            log, sources = Path(folder) / "log", Path(folder) / "src"
            write(mutant, sources)
            result = run_tests(mutant["test"].split(), log, sources)
            word = {0: "SURVIVES", 1: "killed"}.get(result, f"BROKEN, pytest returns {result}")
            print(f"{name} {number}/{len(mutants)} {word}: {mutant['trap']}", flush=True)
            if result not in (0, 1):
                print(log.read_text())
            killed += result == 1
    print(f"{name}: {killed} of {len(mutants)} mutants killed", flush=True)
    return killed == len(mutants)


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    os.chdir(ROOT)
    chosen = [path for path in LISTS if path.stem in sys.argv[1:] or not sys.argv[1:]]
    results = [run_list(path) for path in chosen]
    sys.exit(0 if results and all(results) else 1)
