"""Three ways to the same package, and what is refused."""

import keyword
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import copier
import pytest
import yaml

from xlm.scaffold import cli
from xlm.scaffold.copies import files_of, other_classes

from .conftest import files

ROOT = Path(__file__).parents[3]


def same(one: Path, other: Path) -> bool:
    """Whether two packages are the same, once formatted and but for where the template came from."""
    for folder in (one, other):
        subprocess.run(
            [sys.executable, "-m", "ruff", "format", "-q", "--no-cache", "."], cwd=folder, check=True
        )
    return files(one) == files(other) and all(
        (one / path).read_bytes() == (other / path).read_bytes()
        for path in files(one) - {".copier-answers.yml"}
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_three_commands_make_the_same_package(outside: Path, tmp_path: Path) -> None:
    answers = {"name": "my_model", "author": "me", "xlm": "index"}
    cli.main(["my_model", "--author", "me", "--xlm", "index"])
    copier.run_copy(str(ROOT / "templates" / "model"), outside / "by-path", data=answers, defaults=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", clone], check=True)
    for path in ("templates/model", "copier.yml"):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / path, clone / path], check=True)
    commit(clone)
    copier.run_copy(f"git+file://{clone}", outside / "by-git", data=answers, defaults=True, vcs_ref="HEAD")
    assert same(outside / "my-model", outside / "by-path")
    assert same(outside / "my-model", outside / "by-git")
    recorded = yaml.safe_load((outside / "by-git" / ".copier-answers.yml").read_text())
    assert {"_src_path", "_commit"} <= recorded.keys(), "what `copier update` needs"

    commit(outside / "by-git")
    readme = clone / "templates/model/package/README.md.jinja"
    readme.write_text(readme.read_text() + "\nA later addition.\n")
    commit(clone)
    copier.run_update(outside / "by-git", defaults=True, overwrite=True, vcs_ref="HEAD")
    assert "A later addition." in (outside / "by-git" / "README.md").read_text()


def commit(folder: Path) -> None:
    name = ("-c", "user.name=x", "-c", "user.email=x@x")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", *name, "commit", "-q", "-m", "x"], cwd=folder, check=True)


def test_template_and_families_travel_in_the_wheel_also_by_way_of_the_sdist(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ROOT / "packages" / "xlm-scaffold"
    command = ["uv", "build", "-q", "--no-build-isolation", "--out-dir", str(tmp_path), str(package)]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    subprocess.run([*command, "--python", sys.executable], check=True, env=environment)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    inside = tmp_path / "wheel" / "xlm" / "scaffold"
    assert files(inside / "template") == files(ROOT / "templates" / "model")
    assert {path.name for path in (inside / "families").iterdir()} == {
        f"xlm-{family}" for family in cli.FAMILIES if family != "skeleton"
    }
    for family in (inside / "families").iterdir():
        original = ROOT / "packages" / family.name
        assert files(family) == {path.as_posix() for path in files_of(original)}
        assert all((family / path).read_bytes() == (original / path).read_bytes() for path in files(family))

    cli.main(["from_clone", "copy", "--from", "mlm", "--xlm", "index"])
    monkeypatch.setattr(cli, "HERE", inside)
    cli.main(["from_clone", "copy-of-the-wheel", "--from", "mlm", "--xlm", "index"])
    assert same(outside / "copy", outside / "copy-of-the-wheel")


def test_a_copy_inside_a_clone_is_made_of_that_clone(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = make_clone(outside / "clone")
    shutil.copytree(ROOT / "packages/xlm-mlm", clone / "packages/xlm-mlm")
    with (clone / "packages/xlm-mlm/README.md").open("a") as readme:
        readme.write("\nAn own remark on xlm-mlm.\n")
    monkeypatch.chdir(clone)
    cli.main(["mine", "--from", "mlm"])
    assert "An own remark on xlm-mine." in (clone / "packages/xlm-mine/README.md").read_text()
    assert not (clone / "packages/xlm-mine/.copier-answers.yml").exists()


def make_clone(folder: Path) -> Path:
    """What marks a clone of XLM, and its settings of tools."""
    (folder / "packages" / "xlm-modules").mkdir(parents=True)
    (folder / "packages" / "xlm-modules" / "pyproject.toml").write_text("")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


REFUSED = {
    "My-Model": "small letters",
    "my__model": "single underscores",
    "1st": "beginning with a letter",
    "class": "means something in Python",
    "json": "means something in Python",
    "tensor": "a class of the code that is copied",
    "tensor --from mlm": "a class of the code that is copied",
    "gap_head --from flexmdm": "a class of the code that is copied",
    "mine --prefix Mine": "--prefix is for copies",
    "mine --from ilm --prefix Other": "in other letters is not Other",
    "core": "(XLM has a package xlm-core|is installed)",
    "scaffold": "xlm-scaffold 1.0.0 is installed",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_is_refused_with_the_reason(name: str, outside: Path) -> None:
    with pytest.raises(SystemExit, match=f"Error: .*{name.split()[0]}.*{REFUSED[name]}"):
        cli.main(name.split())
    assert not any(outside.iterdir())


def test_a_module_that_is_there_is_not_hidden(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outside / "xlm_mine.py").write_text("")
    monkeypatch.syspath_prepend(str(outside))
    with pytest.raises(SystemExit, match=r"there is a module xlm_mine in .*xlm_mine\.py"):
        cli.main(["mine"])


def test_an_existing_folder_is_left_alone(outside: Path) -> None:
    (outside / "mine").mkdir()
    (outside / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(SystemExit, match=r"mine exists\. Choose another"):
        cli.main(["mine"])
    assert files(outside) == {"mine/notes.txt"}


def listed(question: str) -> set[str]:
    """Words of the template's hidden question."""
    questions = yaml.safe_load((ROOT / "templates/model/copier.yml").read_text())
    return set(questions[question]["default"].split())


def test_every_word_of_python_is_reserved() -> None:
    words = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names}
    assert {word for word in words if re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", word)} <= listed(
        "reserved_words"
    )


def test_every_class_of_the_skeleton_is_reserved(made: dict[str, Path]) -> None:
    assert other_classes("my_model", made["skeleton"]) <= listed("class_names")


def test_every_package_of_xlm_is_reserved() -> None:
    members = [path.parent for path in ROOT.glob("packages/*/pyproject.toml")]
    ours = {path.name.removeprefix("xlm-") for path in members if not (path / "LICENSE").exists()}
    assert ours == listed("xlm_names")


def test_where_xlm_comes_from(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.main(["from_wheels", "--xlm", "wheels", "--xlm-path", "../dist"])
    cli.main(["from_index", "--xlm", "index", "--licence", "BSD-3-Clause"])
    cli.main(["from_clone"])
    assert sources(outside / "from-wheels")["xlm-core"] == {
        "path": f"{tmp_path}/dist/xlm_core-1.0.0-py3-none-any.whl"
    }
    assert sources(outside / "from-index") == {}
    assert "Redistribution" in (outside / "from-index" / "LICENSE").read_text()
    url = distribution("xlm-scaffold").read_text("direct_url.json") or ""
    assert str(ROOT) in url, "here it is installed from the clone"
    assert sources(outside / "from-clone")["xlm-modules"]["path"] == f"{ROOT}/packages/xlm-modules"

    clone = make_clone(tmp_path / "clone")
    shutil.copytree(ROOT / "templates", clone / "templates")
    monkeypatch.chdir(clone / "packages")
    cli.main(["member"])
    member = clone / "packages" / "xlm-member"
    assert sources(member) == {}
    assert (
        tomllib.loads((member / "pyproject.toml").read_text())["tool"]["ruff"]["extend"]
        == "../../pyproject.toml"
    )


def sources(folder: Path) -> dict[str, dict[str, object]]:
    tool = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]
    return tool.get("uv", {}).get("sources", {})
