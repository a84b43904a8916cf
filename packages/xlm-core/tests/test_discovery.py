"""Configs of installed packages are found without importing the packages."""

import sys
from pathlib import Path

import pytest

from xlm.core.command import compose as run
from xlm.core.command import discovery
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
