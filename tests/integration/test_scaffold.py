"""A package from the template passes its own tests and rules, and trains, with nothing changed in it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xlm.core.command.discovery import config_packages
from xlm.scaffold import cli

from .running import run_fast

FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"
# Of the copy only what can depend on names; its other tests are the family's own.
OWN_TESTS = {
    "skeleton": ["tests"],
    "mlm": ["tests/test_conformance_my_model.py", "tests/test_readme_my_model.py"],
}
Make = Callable[[str], Path]


@pytest.fixture
def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Renders a package and puts it on the path, with the metadata that installing it would write."""

    def make(family: str) -> Path:
        folder = tmp_path / "xlm-my-model"
        cli.main(["my_model", str(folder), "--from", family, "--xlm", "index"])
        metadata = folder / "src" / "xlm_my_model-1.0.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: xlm-my-model\nVersion: 1.0.0\n")
        (metadata / "entry_points.txt").write_text("[xlm.configs]\nmy_model = xlm_my_model.configs\n")
        monkeypatch.syspath_prepend(str(folder / "src"))
        config_packages.cache_clear()
        return folder

    yield make
    config_packages.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "xlm_my_model"]:
        del sys.modules[name]


@pytest.mark.parametrize("family", OWN_TESTS)
def test_a_new_package_passes_its_checks_and_trains(family: str, make_package: Make, tmp_path: Path) -> None:
    folder = make_package(family)
    for command in ("check", "format --check"):
        run(folder, "ruff", *command.split(), "--no-cache", ".")
    run(folder, "pytest", "-q", "-p", "no:cacheprovider", *OWN_TESTS[family])
    small = ("model.d_model=32", "model.num_layers=2", "model.num_heads=2")
    results = run_fast(tmp_path / "runs", tmp_path / "cache", "train", "star_tiny_my_model", FEW_ROWS, *small)
    assert results["test/lm/nll"] > 0
    assert results["test/prediction/nfe_per_sequence"] > 0


def run(folder: Path, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    environment = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
