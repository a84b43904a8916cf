"""A toy family (``toy_family.py``) and its configs, so that the core is tested without any real one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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


class Server:
    """Client of ``process_server.py``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "process_server.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *overrides: str, environments: Sequence[dict[str, str]] = ({},)) -> list[tuple[int, str]]:
        """Run one process for each environment; gives exit codes and what each printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        logs: list[Path] = []
        pids: list[int] = []
        codes: dict[int, int] = {}
        for environment in environments:
            log = self.root / f"log-{len(list(self.root.glob('log-*')))}"
            log.touch()
            order = {
                "root": str(self.root),
                "overrides": overrides,
                "environment": environment,
                "log": str(log),
            }
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            logs.append(log)
        while len(codes) < len(environments):
            words = [int(word) for word in self.process.stdout.readline().split()]
            if len(words) == 1:
                pids.append(words[0])
            else:
                codes[words[0]] = words[1]
        return [(codes[pid], log.read_text()) for pid, log in zip(pids, logs, strict=True)]

    def train(self, *overrides: str) -> tuple[int, str]:
        """Run one training."""
        [result] = self.run("job_type=train", *overrides)
        return result


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("processes"))
    yield server
    server.process.communicate()
