"""A copy of a model family under another name: the files of its package with every name in them changed."""

import re
import tomllib
from pathlib import Path

PARTS = ("pyproject.toml", "README.md", "src", "tests")
"""What a package consists of; ``hatch_build.py`` packs the same."""
_MARK = re.compile(r"^ *# Copied from xlm_[\w.]+\n", re.MULTILINE)
"""The mark of code that must stay equal to another family's, which that of a new model need not."""
_URL = re.compile(r"https?://[^\s)>\"']+")


class Renaming:
    """Replaces the names of a family by those of a new model: ``xlm-ilm``, ``xlm_ilm``, ``ilm``, ``ILM``.

    Args:
        old: Name of the family, such as ``ilm``.
        prefix: What the classes of the family begin with, such as ``ILM``.
        new: Name of the model, such as ``my_model``.
        new_prefix: What its classes begin with; None for :func:`class_prefix`.
    """

    def __init__(self, old: str, prefix: str, new: str, new_prefix: str | None = None) -> None:
        self._new = {
            "distribution": f"xlm-{new.replace('_', '-')}",
            "module": f"xlm_{new}",
            "name": new,
            "prefix": new_prefix or class_prefix(new),
        }
        # A class such as TestILMLoss has other words on both sides, DILM and MDLMX are other names.
        self._pattern = re.compile(
            rf"(?P<distribution>(?<![A-Za-z0-9])xlm-{old}(?![A-Za-z0-9]))"
            rf"|(?P<module>(?<![A-Za-z0-9])xlm_{old}(?![A-Za-z0-9]))"
            rf"|(?P<name>(?<![A-Za-z0-9]){old}(?![a-z0-9]))"
            rf"|(?P<prefix>(?<![A-Z]){prefix}(?![a-z]|[A-Z](?![a-z])))"
        )

    def __call__(self, text: str) -> str:
        """The text with its names replaced, addresses left as they are."""
        urls = _URL.findall(text)
        parts = [self._pattern.sub(self._replacement, part) for part in _URL.split(text)]
        return "".join(part for pair in zip(parts, [*urls, ""], strict=True) for part in pair)

    def _replacement(self, match: re.Match[str]) -> str:
        assert match.lastgroup is not None
        return self._new[match.lastgroup]


def class_prefix(name: str) -> str:
    """What the classes of a new model begin with: ``MyModel`` for ``my_model``."""
    return "".join(word.capitalize() for word in name.split("_"))


def prefix_of(family: str, package: Path) -> str:
    """What the classes of a family begin with, such as ``FlexMDM``."""
    code = (package / f"src/xlm_{family}/model_{family}.py").read_text(encoding="utf-8")
    classes: list[str] = re.findall(r"^class (\w+)", code, re.MULTILINE)
    lower = family.replace("_", "")
    return next(found[: len(lower)] for found in classes if found.lower().startswith(lower))


def files_of(package: Path) -> list[Path]:
    """The files of a package, relative to its folder."""
    found = [path for part in PARTS for path in (package / part, *(package / part).rglob("*"))]
    relative = [path.relative_to(package) for path in found if path.is_file()]
    return sorted(path for path in relative if "__pycache__" not in path.parts)


def other_classes(family: str, package: Path) -> set[str]:
    """Names that a new model must not have, since a class of the code has them: ``tensor`` for ``Tensor``."""
    paths = [package / path for path in files_of(package) if path.suffix == ".py"]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    code = re.sub(r'""".*?"""|#.*?$', "", code, flags=re.DOTALL | re.MULTILINE)
    words = set(re.findall(r"\b[A-Z]\w*[a-z]\w*\b", code))
    prefix = prefix_of(family, package)
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower() for word in words if prefix not in word}


def renamed(
    family: str, package: Path, name: str, skeleton: str, prefix: str | None = None
) -> dict[Path, bytes]:
    """The files of a copy.

    Args:
        family: Name of the family, such as ``ilm``.
        package: Folder of its package.
        name: Name of the new model.
        skeleton: The ``pyproject.toml`` of a skeleton of that name: description, author, licence and settings
            of tools are taken from there.
        prefix: What its classes begin with; None for :func:`class_prefix`.

    Returns:
        The content of each file, by its path in the new package.
    """
    rename = Renaming(family, prefix_of(family, package), name, prefix)
    copied: dict[Path, bytes] = {}
    for path in files_of(package):
        content = (package / path).read_bytes()
        try:
            text = rename(_MARK.sub("", content.decode()))
        except UnicodeDecodeError:  # the weights of a test
            copied[Path(rename(path.as_posix()))] = content
            continue
        if path == Path("pyproject.toml"):
            text = _metadata(text, skeleton)
        elif path == Path("README.md"):
            text = _readme(text, family, skeleton)
        copied[Path(rename(path.as_posix()))] = text.encode()
    return copied


def _metadata(text: str, skeleton: str) -> str:
    """A package's own description, author and licence, and what it needs outside the workspace of XLM."""
    owner = "description = " + skeleton.partition("\ndescription = ")[2].partition("readme = ")[0]
    tests = "test = " + skeleton.partition("\ntest = ")[2].partition("\n")[0]
    tools = skeleton.partition("\npackages = [")[2].partition("\n")[2]
    text = _once(r"^license = .*\n", "", text)
    text = _once(r"^description = .*\n", owner, text)
    text = _once(r"^\[project\.optional-dependencies\]$", f"[project.optional-dependencies]\n{tests}", text)
    return f"{text}\n{tools.lstrip()}"


def _readme(text: str, family: str, skeleton: str) -> str:
    """A description of its own above the text of the original."""
    title, _, rest = text.partition("\n")
    description = tomllib.loads(skeleton)["project"]["description"]
    origin = f"It began as a copy of `xlm-{family}`; the text below is the original's, the names changed."
    return f"{title}\n\n{description}.\n\n{origin}\n{rest}"


def _once(pattern: str, replacement: str, text: str) -> str:
    changed, number = re.subn(pattern, lambda _: replacement, text, count=1, flags=re.MULTILINE)
    assert number == 1, f"no {pattern!r} in\n{text}"
    return changed
