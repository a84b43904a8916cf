"""Packages made once, and what they hold."""

from pathlib import Path

import pytest

from xlm.scaffold.cli import FAMILIES, main

AUTHOR = 'A. "Quoted" O\'Name'


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package ``xlm-my-model`` from each start."""
    folder = tmp_path_factory.mktemp("made")
    for family in FAMILIES:
        main(["my_model", str(folder / family), "--from", family, "--author", AUTHOR, "--xlm", "index"])
    return {family: folder / family for family in FAMILIES}


def files(folder: Path) -> set[str]:
    """Paths of all files, relative to the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
