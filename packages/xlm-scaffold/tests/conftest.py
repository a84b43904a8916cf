"""Packages rendered once, and the way to render another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xlm.scaffold.cli import FAMILIES, main

Render = Callable[..., Path]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package ``xlm-my-model`` from each start."""
    folder = tmp_path_factory.mktemp("rendered")
    for family in FAMILIES:
        main(
            [
                "my_model",
                str(folder / family),
                "--from",
                family,
                "--author",
                'A. "Quoted" O\'Name',
                "--xlm",
                "index",
            ]
        )
    return {family: folder / family for family in FAMILIES}


def files(folder: Path) -> set[str]:
    """Paths of all files, relative to the folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
