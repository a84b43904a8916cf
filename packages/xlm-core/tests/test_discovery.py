"""Installed packages: their configs are found without importing them, and the doctor reports on them."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from xlm.core.command import compose as run
from xlm.core.command import discovery, doctor
from xlm.core.command.discovery import ConfigPackage, config_packages, find_folder
from xlm.core.config.errors import XLMError

from .conftest import Compose


def test_the_core_comes_first() -> None:
    first = config_packages()[0]
    assert first.distribution == "xlm-core"
    assert first.folder == run.CORE_CONFIGS
    assert "overfit" in first.options("debug")


@pytest.fixture
def broken_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "broken_model" / "configs" / "experiment"
    folder.mkdir(parents=True)
    (tmp_path / "broken_model" / "__init__.py").write_text("raise RuntimeError('cannot be imported')")
    (folder / "broken.yaml").write_text("x: 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.parent


def test_a_package_that_cannot_be_imported_is_found(broken_model: Path) -> None:
    assert find_folder("broken_model.configs") == broken_model
    assert "broken_model" not in sys.modules


def test_a_folder_that_is_not_there_offers_nothing() -> None:
    assert find_folder("no_such_package.configs") is None
    assert ConfigPackage("x", "x", None).options("experiment") == []


def test_a_clash_of_names_is_reported_when_it_is_used(
    broken_model: Path, monkeypatch: pytest.MonkeyPatch, compose_toy: Compose
) -> None:
    twins = (ConfigPackage("a", "xlm-a", broken_model), ConfigPackage("b", "xlm-b", broken_model))
    monkeypatch.setattr(discovery, "config_packages", lambda: twins)
    config = compose_toy("job_type=train")
    run.check(config)
    with pytest.raises(XLMError, match="experiment=broken is offered by xlm-a and xlm-b"):
        run.check_origin("experiment", "broken")


def test_a_whole_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "rows.arrow").write_bytes(bytes(3_000_000))
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for part in (
        "torch",
        "cpu",
        "xlm-core",
        "configs in",
        f"3.0 MB in {tmp_path}",
        "does not exist yet",
        "token present",
    ):
        assert part in printed
    assert "no problems" in printed
    assert "secret" not in printed


def test_another_projects_core_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metadata = tmp_path / "xlm_models-0.3.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: xlm-models\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert any("xlm-models 0.3.1 is another project's" in line for line in doctor.problems())


def test_a_file_that_hides_the_namespace_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "xlm").mkdir()
    (tmp_path / "xlm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "find_spec", PathFinder.find_spec)
    assert any("hides every package of XLM" in line for line in doctor.problems())
