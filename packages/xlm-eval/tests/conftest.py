"""The toy family of the core's tests, so that jobs run without any real one."""

import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

CORE_TESTS = Path(__file__).parents[2] / "xlm-core" / "tests"
Run = Callable[..., dict[str, float]]


@pytest.fixture
def run_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Composes ``experiment=toy``, checks and runs a job as the command line does."""
    monkeypatch.syspath_prepend(str(CORE_TESTS))
    spec = spec_from_file_location("toy_jobs", CORE_TESTS / "toy_jobs.py")
    assert spec is not None
    assert spec.loader is not None
    toy_jobs = module_from_spec(spec)
    spec.loader.exec_module(toy_jobs)

    def run(*overrides: str) -> dict[str, float]:
        return toy_jobs.run(tmp_path, *overrides)

    yield run
    sys.modules.pop("toy_family", None)
