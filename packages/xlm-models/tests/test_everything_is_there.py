"""Installing this package brings the harness, every family and every task."""

import re
from importlib.metadata import requires

import pytest

from xlm.core.command.discovery import config_packages, providers


def test_every_config_package_is_found() -> None:
    found = {package.name for package in config_packages()}
    families = {"arlm", "bd3lm", "did", "editflow", "flexmdm", "ilm", "mdlm", "mlm", "udlm"}
    assert {"core", "star", *families} <= found
    assert all(package.folder is not None for package in config_packages())


@pytest.mark.parametrize("level", ["tiny", "easy", "medium", "hard"])
def test_every_family_has_its_experiments(level: str) -> None:
    siblings = [re.split(r"[<>=,]", name)[0] for name in requires("xlm-models") or []]
    families = [
        name.removeprefix("xlm-")
        for name in siblings
        if name not in ("xlm-core", "xlm-eval", "xlm-tasks", "xlm-scaffold")
    ]
    assert families
    for family in families:
        assert f"star_{level}_{family}" in providers("experiment")
