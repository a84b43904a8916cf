"""A package from the template passes its own tests and rules, and trains, with nothing changed in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from xlm.scaffold.cli import FAMILIES

from .new_packages import forget, make_package
from .running import composed

HERE = Path(__file__).parent
HUB_SERVER = HERE.parents[1] / "packages" / "xlm-core" / "tests"

# Of the copy only what can depend on names; its other tests are the family's own.
OWN_TESTS = {
    "skeleton": ["tests"],
    "mlm": [f"tests/test_conformance_my_model.py::{name}" for name in ("TestFixedWidth", "TestSaving")],
}


@pytest.fixture
def my_model(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A package ``xlm-my-model`` from the family that the test names."""
    folder = make_package("my_model", tmp_path / "xlm-my-model", request.param)
    monkeypatch.syspath_prepend(str(folder / "src"))
    yield folder
    forget("my_model")


@pytest.mark.parametrize(("my_model", "tests"), OWN_TESTS.items(), indirect=["my_model"])
def test_a_new_package_passes_its_checks(my_model: Path, tests: list[str]) -> None:
    for command in ("check", "format --check"):
        run(my_model, "ruff", *command.split(), "--no-cache", ".")
    run(my_model, "pytest", "-q", "-p", "no:cacheprovider", *tests)


@pytest.mark.parametrize("my_model", ["skeleton"], indirect=True)
@pytest.mark.usefixtures("my_model")
def test_the_skeleton_trains_under_the_conditions_of_the_families() -> None:
    def conditions(name: str) -> tuple[int, dict[str, object]]:
        config = composed(f"star_tiny_{name}", "job_type=train", "job_name=x")
        vocab = {"vocab.size": 14, "vocab.pad_id": 0, "vocab.mask_id": 1, "vocab.special_ids": [0, 1]}
        for key, value in vocab.items():
            OmegaConf.update(config, key, value)
        with torch.device("meta"):
            model = instantiate(config.model)
        loop = {key: config[key] for key in ("trainer", "optimizer", "lr_scheduler", "seed")}
        size = sum(parameter.numel() for parameter in model.parameters())
        return size, {**loop, "batch_size": config.datamodule.batch_size}

    assert conditions("my_model") == conditions("mlm")


@pytest.mark.parametrize(
    ("which", "number"), [("not slow", 2), pytest.param("slow", len(FAMILIES) - 2, marks=pytest.mark.slow)]
)
def test_a_new_model_trains_is_pushed_and_used_as_its_card_says(
    which: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tests of sharing_new_models.py, in a process whose client talks to a Hub of their own."""
    monkeypatch.syspath_prepend(HUB_SERVER)
    from hub_server import TOKEN, Hub, serve

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_ENDPOINT": serve(Hub()).url, "HF_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", which, "-p", "no:cacheprovider", "-p", "no:xdist",
         "-W", "ignore:Use 'content=:DeprecationWarning",  # of the client's own code
         str(HERE / "sharing_new_models.py")],
        check=False, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} passed" in done.stdout


def run(folder: Path, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    environment = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
