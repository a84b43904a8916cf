"""The command ``xlm-scaffold``: the template's questions as options, answered by what is found around it.

The skeleton is rendered by copier. A copy of a family has the files of the family, renamed, and the licence
and settings of tools that copier renders.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

import copier
from copier.errors import CopierError

from xlm.scaffold.copies import other_classes, renamed

HERE = Path(__file__).parent
FAMILIES = ("skeleton", "arlm", "mlm", "ilm", "did", "editflow", "mdlm", "flexmdm", "bd3lm", "udlm")
LICENCES = ("MIT", "BSD-3-Clause", "LicenseRef-Proprietary")
SKELETON_ONLY = ("README.md", "src", "tests", ".copier-answers.yml")
"""What a copy of a family has not: it is its own from the start, so copier cannot bring it up to date."""
ORIGINS = ("workspace", "clone", "wheels", "index")


class Refused(Exception):  # noqa: N818  # read as a sentence: the request is refused
    """The request cannot be met; the message states the reason."""


def template(workspace: Path | None) -> Path:
    """The template of the skeleton."""
    return _source("template", "templates/model", workspace)


def package_of(family: str, workspace: Path | None) -> Path:
    """The package of a family."""
    return _source(f"families/xlm-{family}", f"packages/xlm-{family}", workspace)


def _source(packed: str, path: str, workspace: Path | None) -> Path:
    """What to copy: as it is in the clone around us, as the wheel has it, or as in the clone of this file."""
    places = [HERE / packed, HERE.parents[4] / path]
    if workspace is not None:
        places.insert(0, workspace / path)
    return next(place for place in places if place.is_dir())


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a package, or say why not."""
    options = parse(arguments)
    try:
        make(options)
    except (Refused, CopierError, ValueError) as error:
        sys.exit(f"Error: {error}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="xlm-scaffold", description="Make a new model package that trains at once."
    )
    parser.add_argument("name", help="of the model, such as my_model: makes xlm-my-model")
    parser.add_argument("folder", nargs="?", type=Path, help="where to make it (default: a new folder here)")
    parser.add_argument("--from", dest="family", choices=FAMILIES, default="skeleton", help="what to copy")
    parser.add_argument("--prefix", help="of the classes of a copy, such as MyLLM for my_llm")
    parser.add_argument("--description", help="one sentence about it")
    parser.add_argument("--author", help="for the licence and the package (default: git's user.name)")
    parser.add_argument("--licence", choices=LICENCES, help="of the package")
    parser.add_argument("--xlm", choices=ORIGINS, help="where the packages of XLM come from")
    parser.add_argument("--xlm-path", metavar="PATH", help="of that clone, or of the folder of wheels")
    parser.add_argument("--ask", action="store_true", help="ask for what is not given")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace) -> Path:
    """Render the template, or copy a family.

    Returns:
        The folder of the new package.

    Raises:
        Refused: If the name or the folder is taken.
    """
    name: str = options.name
    here = Path.cwd()
    workspace = find_workspace(here)
    folder = options.folder or default_folder(name, workspace, here)
    check_free(name, folder)
    package = None if options.family == "skeleton" else package_of(options.family, workspace)
    if package is not None and name in other_classes(options.family, package):
        raise Refused(
            f"{name} is taken: a class of the code that is copied has this name. Choose another name."
        )
    check_prefix(options.prefix, name, copies=package is not None)
    found = {"author": author()} | origin(folder, workspace)
    given = {
        key: value
        for key in ("name", "family", "description", "author", "licence", "xlm", "xlm_path")
        if (value := getattr(options, key)) is not None
    }
    if "xlm_path" in given:
        given["xlm_path"] = str(Path(given["xlm_path"]).resolve())
    copier.run_copy(
        str(template(workspace)),
        folder,
        data=given,
        user_defaults={key: value for key, value in found.items() if value is not None},
        exclude=() if package is None else SKELETON_ONLY,
        defaults=not options.ask,
    )
    if package is not None:
        skeleton = (folder / "pyproject.toml").read_text(encoding="utf-8")
        for path, content in renamed(options.family, package, name, skeleton, options.prefix).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    tidy(folder)
    return folder


def tidy(folder: Path) -> None:
    """Sort imports and wrap lines, which depend on the new names."""
    ruff = [sys.executable, "-m", "ruff"]
    rules = ("--select", "I001,RUF022", "--fix")
    subprocess.run([*ruff, "check", "--quiet", "--no-cache", *rules, "."], cwd=folder, check=True)
    subprocess.run([*ruff, "format", "--quiet", "--no-cache", "."], cwd=folder, check=True)


def find_workspace(here: Path) -> Path | None:
    """The clone of XLM around a folder."""
    for folder in (here, *here.parents):
        if (folder / "packages" / "xlm-modules" / "pyproject.toml").is_file():
            return folder
    return None


def default_folder(name: str, workspace: Path | None, here: Path) -> Path:
    """A member of the workspace if there is one, else a folder here."""
    dashed = name.replace("_", "-")
    return workspace / "packages" / f"xlm-{dashed}" if workspace is not None else here / dashed


def check_free(name: str, folder: Path) -> None:
    """Refuse a name or a folder that is in use.

    Raises:
        Refused: If something is there; names it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} exists. Choose another name, or another folder: xlm-scaffold {name} FOLDER")
    wanted = f"xlm-{name.replace('_', '-')}"
    try:
        taken = distribution(wanted)
    except PackageNotFoundError:
        pass
    else:
        raise Refused(f"{name} is taken: {wanted} {taken.version} is installed. Choose another name.")
    if name.isidentifier() and (spec := find_spec(f"xlm_{name}")) is not None:
        raise Refused(f"{name} is taken: there is a module xlm_{name} in {spec.origin}. Choose another name.")


def check_prefix(prefix: str | None, name: str, *, copies: bool) -> None:
    """Refuse a prefix of classes that is not the model's name in other letters.

    Raises:
        Refused: If it is none, or nothing is copied.
    """
    if prefix is None:
        return
    if not copies:
        raise Refused(f"{name}: --prefix is for copies: add --from FAMILY")
    if prefix.lower() != name.replace("_", "") or not prefix[:1].isupper():
        raise Refused(f"{name} in other letters is not {prefix}: --prefix is such as MyLLM for my_llm")


def author() -> str | None:
    """The author's name from git."""
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], check=False, capture_output=True, text=True, timeout=10
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def origin(folder: Path, workspace: Path | None) -> dict[str, str]:
    """Where the packages of XLM come from: the workspace around the folder, else where this one came from."""
    if workspace is not None and folder.resolve().parent == workspace / "packages":
        return {"xlm": "workspace"}
    record = distribution("xlm-scaffold").read_text("direct_url.json")
    url = urlparse(json.loads(record)["url"] if record else "")
    if url.scheme != "file":
        return {"xlm": "index"}
    path = Path(unquote(url.path))
    if path.suffix == ".whl":
        return {"xlm": "wheels", "xlm_path": str(path.parent)}
    return {"xlm": "clone", "xlm_path": str(path.parents[1])}
