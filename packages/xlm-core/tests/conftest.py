"""A toy family (``toy_family.py``) and its configs, so that the core is tested without any real one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from . import toy_jobs

HERE = Path(__file__).parent
Compose = Callable[..., DictConfig]
Run = Callable[..., dict[str, float]]


@pytest.fixture(autouse=True)
def toy_family_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield
    sys.modules.pop("toy_family", None)


@pytest.fixture
def datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `datasets` keep what it reads in a folder of its own, beside the test's."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def compose_toy(tmp_path: Path) -> Compose:
    """Composes ``experiment=toy`` with overrides; runs and cache lie in the test's own folder."""

    def composed(*overrides: str) -> DictConfig:
        return toy_jobs.composed(tmp_path, *overrides)

    return composed


@pytest.fixture
def run_toy(tmp_path: Path) -> Run:
    """Composes, checks and runs a job as the command line does."""

    def run(*overrides: str) -> dict[str, float]:
        return toy_jobs.run(tmp_path, *overrides)

    return run
