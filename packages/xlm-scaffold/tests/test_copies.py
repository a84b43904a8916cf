"""What the new packages hold, compared with the packages that they are copies of."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from xlm.scaffold.cli import FAMILIES
from xlm.scaffold.copies import Renaming, files_of, other_classes, prefix_of, renamed

from .conftest import AUTHOR, files

ROOT = Path(__file__).parents[3]
COPIES = [family for family in FAMILIES if family != "skeleton"]
PREFIXES = {
    "arlm": "ARLM",
    "mlm": "MLM",
    "ilm": "ILM",
    "did": "DID",
    "editflow": "EditFlow",
    "mdlm": "MDLM",
    "flexmdm": "FlexMDM",
    "bd3lm": "BD3LM",
    "udlm": "UDLM",
}
ADDED = {"LICENSE", ".gitignore"}


def package(family: str) -> Path:
    return ROOT / "packages" / f"xlm-{family}"


def tracked(folder: Path) -> set[str]:
    """Files of a folder that belong to the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return {line for line in done.stdout.splitlines() if (folder / line).exists()}


def test_every_family_can_be_copied() -> None:
    members = [path.parents[2] for path in ROOT.glob("packages/xlm-*/src/xlm_*/configs")]
    ours = {path.name.removeprefix("xlm-") for path in members if not (path / "LICENSE").exists()}
    assert ours == set(COPIES)
    assert {family: prefix_of(family, package(family)) for family in COPIES} == PREFIXES


@pytest.mark.parametrize("family", COPIES)
def test_a_family_consists_of_its_tracked_files(family: str) -> None:
    assert {path.as_posix() for path in files_of(package(family))} == tracked(package(family))


@pytest.mark.parametrize("family", COPIES)
def test_a_copy_has_the_files_of_its_family(family: str, made: dict[str, Path]) -> None:
    expected = {
        re.sub(rf"(?<![a-z]){family}(?![a-z])", "my_model", path) for path in tracked(package(family))
    }
    assert files(made[family]) == expected | ADDED


def test_a_copy_need_not_stay_equal_to_another_family(made: dict[str, Path]) -> None:
    """The marks of code that several families share are ours: `tests/architecture/test_copies.py`."""
    code = {family: "".join(path.read_text() for path in made[family].rglob("*.py")) for family in COPIES}
    assert not [family for family in COPIES if "Copied from" in code[family]]
    assert "Copied from" in (package("mdlm") / "src/xlm_mdlm/vocabulary_mdlm.py").read_text()


def test_the_classes_of_a_copy_begin_with_a_given_prefix(made: dict[str, Path]) -> None:
    skeleton = (made["skeleton"] / "pyproject.toml").read_text()
    copied = renamed("ilm", package("ilm"), "my_model", skeleton, "MYModel")
    assert "class MYModel(" in copied[Path("src/xlm_my_model/model_my_model.py")].decode()
    assert "_target_: xlm_my_model.MYModelLoss" in "".join(
        content.decode() for path, content in copied.items() if path.suffix == ".yaml"
    )
    assert not [path for path, content in copied.items() if b"MyModel" in content]


@pytest.mark.parametrize("family", COPIES)
def test_no_name_of_the_family_is_left(family: str, made: dict[str, Path]) -> None:
    """Only the sentence about the origin of the copy, and URLs, have the old name."""
    old = re.compile(rf"(?<![a-z0-9]){family}(?![a-z0-9])|(?<![A-Z]){PREFIXES[family]}(?![A-Z]*[a-z]?[a-z])")
    for path in sorted(files(made[family])):
        if path.endswith(".safetensors"):
            continue
        text = re.sub(r"https?://\S+", "", (made[family] / path).read_text())
        text = text.replace(f"began as a copy of `xlm-{family}`", "").replace(f"began as xlm-{family}", "")
        assert not (left := old.search(text)), f"{path}: {left}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_package_is_valid(family: str, made: dict[str, Path]) -> None:
    folder = made[family]
    for path in folder.rglob("*.yaml"):
        assert yaml.safe_load(path.read_text())
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "xlm-my-model"
    assert project["authors"] == [{"name": AUTHOR}]
    assert project["entry-points"]["xlm.configs"] == {"my_model": "xlm_my_model.configs"}
    assert AUTHOR in (folder / "LICENSE").read_text()
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# xlm-my-model\n\n{project['description']}.\n\n")
    assert not re.search(r"\{%|\{\{ | \}\}", readme)


@pytest.mark.parametrize("family", COPIES)
def test_a_copy_declares_what_its_family_declares(family: str, made: dict[str, Path]) -> None:
    """Dependencies, extras and entry points; every class that it names is there."""
    old = tomllib.loads((package(family) / "pyproject.toml").read_text())["project"]
    new = tomllib.loads((made[family] / "pyproject.toml").read_text())["project"]
    assert new["dependencies"] == old["dependencies"]
    assert new["optional-dependencies"].keys() == {*old["optional-dependencies"], "test"}
    assert len(new["entry-points"]["xlm.classes"]) == len(old["entry-points"]["xlm.classes"])
    for declared, place in new["entry-points"]["xlm.classes"].items():
        module, _, name = place.partition(":")
        assert declared == f"xlm_my_model.{name}"
        tree = ast.parse((made[family] / "src" / f"{module.replace('.', '/')}.py").read_text())
        assert any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_package_is_formatted_and_passes_its_rules(family: str, made: dict[str, Path]) -> None:
    for command in ("check", "format --check"):
        passes(made[family], *command.split())


def passes(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("family", COPIES)
def test_the_python_of_a_copy_is_that_of_its_family_but_for_names(family: str, made: dict[str, Path]) -> None:
    rename = Renaming(family, PREFIXES[family], "my_model")
    for path in files_of(package(family)):
        if path.suffix == ".py":
            copy = (made[family] / rename(path.as_posix())).read_text()
            back = (
                copy.replace("my_model", family)
                .replace("my-model", family)
                .replace("MyModel", PREFIXES[family])
            )
            original = re.sub(r"(?m)^ *# Copied from .*\n", "", (package(family) / path).read_text())
            assert statements(back) == statements(original), path
            assert sorted(words(back)) == sorted(words(original)), path


def statements(code: str) -> list[str]:
    """Top-level statements without imports and ``__all__``, which are sorted by names."""
    body = [node for node in ast.parse(code).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.dump(node) for node in body if "__all__" not in ast.dump(node)]


def words(code: str) -> list[str]:
    return re.findall(r"\w+", code)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("xlm-ilm xlm_ilm ilm ILM", "xlm-ilm-two xlm_ilm_two ilm_two IlmTwo"),
        ("xlm_ilm.loss_ilm:ILMLoss TestILMLoss", "xlm_ilm_two.loss_ilm_two:IlmTwoLoss TestIlmTwoLoss"),
        ("star_tiny_ilm.yaml ilm_lengths ILM's", "star_tiny_ilm_two.yaml ilm_two_lengths IlmTwo's"),
        ("film DILM ILMX xlm_ilmx", "film DILM ILMX xlm_ilmx"),
        ("(https://arxiv.org/abs/ilm) ilm", "(https://arxiv.org/abs/ilm) ilm_two"),
    ],
)
def test_names_are_whole_words_and_changed_once(text: str, expected: str) -> None:
    assert Renaming("ilm", "ILM", "ilm_two")(text) == expected


def test_classes_of_the_code_are_no_names_for_a_model() -> None:
    taken = other_classes("mlm", package("mlm"))
    assert {"tensor", "sequence", "rotary_transformer"} <= taken
    assert not any("mlm" in name.split("_") for name in taken - {"auto_model_for_masked_lm"})
