"""Every block of the documentation that is marked as code to run, run in order."""

from pathlib import Path

import pytest

from .blocks import ROOT, blocks_of, markdown_files
from .running import copy_of_the_repository, run_file

FILES = [path for path in markdown_files() if any(block.runs for block in blocks_of(path))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(copy_of_the_repository(tmp_path))
    assert run_file(path, monkeypatch) > 0
