"""Installing this package brings the harness, every family and every task."""

import re
from importlib.metadata import requires

import pytest

from xlm.core.command.discovery import config_packages, providers

SIBLINGS = {re.split(r"[<>=,]", name)[0].removeprefix("xlm-") for name in requires("xlm-models") or []}
FAMILIES = SIBLINGS - {"core", "eval", "tasks", "scaffold"}


def test_every_config_package_is_found() -> None:
    found = {package.name for package in config_packages()}
    assert {"core", "star", "ilm"} <= found
    assert found >= FAMILIES
    assert all(package.folder is not None for package in config_packages())


@pytest.mark.parametrize("level", ["tiny", "easy", "medium", "hard"])
def test_every_family_has_its_experiments(level: str) -> None:
    assert FAMILIES
    for family in FAMILIES:
        assert f"star_{level}_{family}" in providers("experiment")
