"""What the rendered packages hold, compared with the packages that they are copies of."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from xlm.scaffold.cli import FAMILIES

from .conftest import files

ROOT = Path(__file__).parents[3]
ADDED = {"LICENSE", ".gitignore", ".copier-answers.yml"}
PREFIXES = {
    "arlm": "ARLM",
    "mlm": "MLM",
    "ilm": "ILM",
    "mdlm": "MDLM",
    "flexmdm": "FlexMDM",
    "skeleton": "Skeleton",
}


def source(family: str) -> Path:
    return ROOT / "templates" / "skeleton" if family == "skeleton" else ROOT / "packages" / f"xlm-{family}"


def test_the_template_is_up_to_date() -> None:
    command = ["python", "templates/make_template.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_has_the_files_of_its_family(family: str, rendered: dict[str, Path]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=source(family),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    expected = {
        re.sub(rf"(?<![a-z]){family}(?![a-z])", "my_model", path)
        for path in listed
        if (source(family) / path).exists()
    }
    assert files(rendered[family]) == expected | ADDED


@pytest.mark.parametrize("family", FAMILIES)
def test_no_name_of_the_family_is_left(family: str, rendered: dict[str, Path]) -> None:
    """Only the sentence that says where the copy comes from, and addresses, have the old name."""
    old = re.compile(rf"(?<![a-z0-9]){family}(?![a-z0-9])|(?<![A-Z]){PREFIXES[family]}(?![A-Z]*[a-z]?[a-z])")
    for path in sorted(files(rendered[family]) - {".copier-answers.yml"}):
        if path.endswith(".safetensors"):
            continue
        text = re.sub(r"https?://\S+", "", (rendered[family] / path).read_text())
        text = text.replace(f"began as a copy of `xlm-{family}`", "").replace(f"began as xlm-{family}", "")
        assert not old.search(text), f"{path}: {text[old.search(text).start() - 40 :][:120]}"  # pyright: ignore[reportOptionalMemberAccess]  # found just before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_valid(family: str, rendered: dict[str, Path]) -> None:
    folder = rendered[family]
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text())
    for path in folder.rglob("*.yaml"):
        assert yaml.safe_load(path.read_text())
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "xlm-my-model"
    assert project["authors"] == [{"name": 'A. "Quoted" O\'Name'}]
    assert project["entry-points"]["xlm.configs"] == {"my_model": "xlm_my_model.configs"}
    assert not any(
        marker in path.read_text() for path in folder.rglob("*.md") for marker in ("{{ ", " }}", "{% ")
    )
    assert 'A. "Quoted" O\'Name' in (folder / "LICENSE").read_text()


def test_the_python_of_a_copy_is_that_of_its_family_but_for_names(rendered: dict[str, Path]) -> None:
    original = (ROOT / "packages/xlm-ilm/src/xlm_ilm/loss_ilm.py").read_text()
    copy = (rendered["ilm"] / "src/xlm_my_model/loss_my_model.py").read_text()
    assert copy != original
    assert copy.replace("my_model", "ilm").replace("MyModel", "ILM") == original
