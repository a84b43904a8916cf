"""Rules about files: the namespace, sizes, metadata that members share, and whose packages are installed."""

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from .layout import ROOT, Package, packages

MEMBERS = sorted(ROOT.glob("packages/*/pyproject.toml"))
OURS = [path for path in MEMBERS if not (path.parent / "LICENSE").exists()]
"""Without packages made by a reader with `xlm-scaffold`, whose licence, version and code are their own."""
LONGEST_FILE = 400


def tracked(pattern: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / line for line in lines if (ROOT / line).exists()]


def test_xlm_stays_a_namespace() -> None:
    stray = list(ROOT.glob("packages/*/src/xlm/__init__.py"))
    assert not stray, f"{stray} would hide every other xlm package"


def test_no_init_file_in_tests_of_members() -> None:
    assert not list(ROOT.glob("packages/*/tests/**/__init__.py"))


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_a_package_is_typed(package: Package) -> None:
    assert (package.source / "py.typed").is_file()


def test_files_can_be_read_in_a_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in tracked("*.py")
        if (n := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long, f"longer than {LONGEST_FILE} lines: {long}"


@pytest.mark.parametrize("path", MEMBERS, ids=lambda path: path.parent.name)
def test_members_share_their_metadata(path: Path) -> None:
    member = tomllib.loads(path.read_text())
    project = member["project"]
    assert project["name"] == path.parent.name
    assert project["requires-python"] == ">=3.11"
    assert "pytest" not in member.get("tool", {}), "a pytest table here would switch off the root's options"
    siblings = [name for name in project.get("dependencies", []) if name.startswith("xlm-")]
    assert all(re.search(r">=1\.0,<2$", name) for name in siblings), siblings


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.parent.name)
def test_our_packages_share_version_and_licence(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    assert (project["version"], project["license"]) == ("1.0.0", "MIT")


@pytest.mark.parametrize("name", [path.parent.name for path in OURS])
def test_our_packages_come_from_this_repository(name: str) -> None:
    """On the public index ``xlm-core`` and ``xlm-models`` are another project's."""
    found = distribution(name)
    assert found.version == "1.0.0"
    assert (ROOT / "packages" / name).as_uri() in (found.read_text("direct_url.json") or "")
