"""The lists of tests/mutants fit the code; `nox -s mutants` runs them."""

import re
import tomllib
from pathlib import Path

import pytest

from .layout import ROOT

LISTS = sorted(ROOT.glob("tests/mutants/*.toml"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_mutant_changes_one_place_and_names_its_tests(path: Path) -> None:
    folder = ROOT / "packages" / f"xlm-{path.stem}"
    for mutant in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        assert set(mutant) == {"trap", "file", "old", "new", "test"}, mutant
        text = (folder / mutant["file"]).read_text(encoding="utf-8")
        assert text.count(mutant["old"]) == 1, f"not once in {mutant['file']}: {mutant['old']}"
        assert mutant["old"] != mutant["new"], mutant["trap"]
        for test in mutant["test"].split():
            file, name, *_ = test.split("::")
            defined = (folder / file).read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {name}\(", defined, re.MULTILINE), test
