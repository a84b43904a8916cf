"""Makes the families of the model template from the packages: `nox -s template` (`-- --check`: only compare).

``templates/model/families/NAME/`` is the package ``packages/xlm-NAME`` (``skeleton``: ``templates/skeleton``)
file by file, with its names replaced by Jinja expressions. What a package needs outside this repository is
added from ``templates/parts``. Nothing below ``families`` is written by hand, nor is ``class_names.yml``.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = ROOT / "templates" / "model" / "families"
CLASS_NAMES = ROOT / "templates" / "model" / "class_names.yml"
PARTS = ROOT / "templates" / "parts"
REMARK = "{{# Made from {source} by `nox -s template`: change it there. #}}"
URL = re.compile(r"https?://[^\s)>\"']+")
WORDS = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"


def sources() -> dict[str, Path]:
    """Folder of each family that the template offers: those with configs and a name of their own."""
    packages = [
        path.parent for path in ROOT.glob("packages/*/src/*/configs") if path.parent.parent.name == "src"
    ]
    found = {path.name.removeprefix("xlm_"): path.parents[1] for path in packages}
    return {**dict(sorted(found.items())), "skeleton": ROOT / "templates" / "skeleton"}


def class_prefix(name: str, folder: Path) -> str:
    """What the classes of a family begin with, such as ``FlexMDM``."""
    classes = re.findall(
        r"^class (\w+)", (folder / f"src/xlm_{name}/model_{name}.py").read_text(), re.MULTILINE
    )
    return next(found[: len(name)] for found in classes if found.lower().startswith(name))


def tracked(folder: Path) -> list[Path]:
    """Files of a folder that belong to the repository, relative to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    lines = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return [Path(line) for line in sorted(lines) if (folder / line).is_file()]


class Renaming:
    """Replaces the names of one family by expressions of the template."""

    def __init__(self, name: str, prefix: str) -> None:
        self.name = name
        self._rules = [
            (re.compile(WORDS.format(f"xlm-{name}")), "{{ distribution }}"),
            (re.compile(WORDS.format(f"xlm_{name}")), "{{ module }}"),
            (re.compile(rf"(?<![A-Za-z0-9]){name}(?![a-z0-9])"), "{{ name }}"),
            # A class such as TestILMLoss has other words on both sides, DILM and MDLMX are other names.
            (re.compile(rf"(?<![A-Z]){prefix}(?![a-z]|[A-Z](?![a-z]))"), "{{ prefix }}"),
        ]

    def __call__(self, text: str) -> str:
        """The text with its names replaced, addresses left as they are."""
        urls = URL.findall(text)
        parts = [self._replace(part) for part in URL.split(text)]
        return "".join(part for pair in zip(parts, [*urls, ""], strict=True) for part in pair)

    def _replace(self, text: str) -> str:
        text = re.sub(r"\{\{|\{%|\{#", lambda match: "{{ '" + match[0] + "' }}", text)
        for pattern, expression in self._rules:
            text = pattern.sub(expression, text)
        return text


def render(name: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file of the template of a family: its path below the family's folder, its content."""
    rename = Renaming(name, class_prefix(name, folder))
    remark = REMARK.format(source=folder.relative_to(ROOT))
    for path in tracked(folder):
        target, content = rename(path.as_posix()), (folder / path).read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            yield target, content
            continue
        if path.as_posix() == "pyproject.toml":
            changed = metadata(rename(text), name)
        elif path.as_posix() == "README.md":
            changed = readme(rename(text), name)
        else:
            changed = rename(text)
        yield (f"{target}.jinja", f"{remark}{changed}".encode()) if changed != text else (target, content)
    for part in sorted(PARTS.iterdir()):
        if part.name != "pyproject.toml.jinja":
            yield part.name, part.read_bytes()


def other_classes(name: str, folder: Path) -> set[str]:
    """Names in the code that a new family must not have, as a model's name: ``tensor`` for ``Tensor``."""
    prefix = class_prefix(name, folder)
    code = "".join((folder / path).read_text() for path in tracked(folder) if path.suffix == ".py")
    words = set(re.findall(r"\b[A-Z]\w*[a-z]\w*\b", re.sub(r'""".*?"""|#.*?$', "", code, flags=re.S | re.M)))
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower() for word in words if prefix not in word}


def metadata(text: str, name: str) -> str:
    """The package's own description, author and licence, and what it needs outside the workspace."""
    owner = (
        "description = {{ description | tojson }}\nauthors = [{ name = {{ author | tojson }} }]\n"
        'license = "{{ licence }}"\nlicense-files = ["LICENSE"]\n'
    )
    text = _once(r'description = ".*"\n', owner, text)
    text = _once(r'(?m)^license = "MIT"\n', "", text)
    text = _once(
        r"(?m)^(\[project\.optional-dependencies\]\n)", r'\1test = ["pytest>=8.3", "numpy>=1.26"]\n', text
    )
    return text + (PARTS / "pyproject.toml.jinja").read_text()


def readme(text: str, name: str) -> str:
    """A title and a sentence of its own above the text of the original."""
    origin = (
        ""
        if name == "skeleton"
        else f"\nIt began as a copy of `xlm-{name}`; the text below is the original's, the names changed.\n"
    )
    return _once(r"# \{\{ distribution \}\}\n", "# {{ distribution }}\n\n{{ description }}.\n" + origin, text)


def _once(pattern: str, replacement: str, text: str) -> str:
    changed, number = re.subn(pattern, replacement, text, count=1)
    if number != 1:
        raise SystemExit(f"no {pattern!r} in\n{text}")
    return changed


def made() -> dict[Path, bytes]:
    """All files that this script makes, as they should be."""
    taken = sorted(set[str]().union(*(other_classes(name, folder) for name, folder in sources().items())))
    question = f"class_names: {{type: str, when: false, default: ' {' '.join(taken)} '}}"
    listed = f"# Made by `nox -s template`.\n{question}\n"
    families = {
        FAMILIES / name / target: content
        for name, folder in sources().items()
        for target, content in render(name, folder)
    }
    return {**families, CLASS_NAMES: listed.encode()}


def stale() -> list[str]:
    """Files that are not as they should be, relative to the repository."""
    expected = made()
    there = {path for path in (*FAMILIES.rglob("*"), CLASS_NAMES) if path.is_file()}
    different = {path for path in expected if path not in there or path.read_bytes() != expected[path]}
    return sorted(str(path.relative_to(ROOT)) for path in different | (there - expected.keys()))


def main() -> None:
    """Write the template, or say what is stale."""
    if "--check" in sys.argv[1:]:
        if found := stale():
            raise SystemExit("\n".join(["stale, run `uv run nox -s template`:", *found]))
        return
    shutil.rmtree(FAMILIES, ignore_errors=True)
    for path, content in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
