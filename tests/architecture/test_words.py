"""The texts of the repository use the terms and the form of docstrings of CONTRIBUTING.md."""

import ast
import inspect
import re
from collections.abc import Iterator

import pytest

from .layout import ROOT, Package, packages
from .test_repository import tracked

TEXTS = ("*.md", "*.py", "*.yaml", "*.yml", "*.toml", "*.jinja")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
LIST = ROOT / "CONTRIBUTING.md"


def unwanted() -> dict[str, str]:
    """Each searched word of the list, and the preferred one."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    return {word: better for better, others in rows for word in re.findall(r"`([^`]+)`", others)}


def found_in(text: str, word: str) -> list[int]:
    """Numbers of the lines that hold the word, also across a line break or as a part of a name_like_this."""
    pattern = r"[\s#_]+".join(map(re.escape, word.split()))
    return [
        text.count("\n", 0, match.start()) + 1
        for match in re.finditer(rf"(?<![A-Za-z]){pattern}(?![A-Za-z])", text, re.IGNORECASE)
    ]


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, argument, attribute, class and function that is no test."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) if not name.startswith("test_"):  # a sentence
                yield node.lineno, name
            case _:
                pass


def test_identifiers_use_the_preferred_terms() -> None:
    [line] = re.findall(r"^Identifiers also avoid (.*)\.$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    words = set(re.findall(r"`(\w+)`", line))
    assert "figure" in words
    faults = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in tracked("*.py")
        if "{{" not in str(path)
        for number, name in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if words & set(name.lower().split("_"))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("pattern", TEXTS)
def test_texts_use_the_preferred_terms(pattern: str) -> None:
    words = unwanted()
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}, better {better!r}"
        for path in tracked(pattern)
        if path not in (LIST, ROOT / "tests/architecture/test_words.py")
        for word, better in words.items()
        for line in found_in(path.read_text(encoding="utf-8"), word)
    ]
    assert not faults, "\n".join(faults)


def test_the_list_is_read_and_searched() -> None:
    words = unwanted()
    assert words["law"] == "distribution"
    assert len(words) > 15
    assert found_in("a\nexact_law = 1\nflaw, lawn", "law") == [2]
    assert found_in("# kept for\n# ever", "for ever") == [1]
    names = ast.parse("def told(a): b.way = 1\ndef test_the_way(): pass\nclass Figures: pass")
    assert {name for _, name in identifiers(names)} == {"told", "a", "b", "way", "Figures"}


def faults(docstring: str) -> Iterator[str]:
    """What departs from the convention: a summary on one line, ``Raises`` with conditions."""
    lines = inspect.cleandoc(docstring).splitlines()
    if not lines[0].endswith("."):
        yield f"the summary is no sentence of one line: {lines[0]}"
    raises = lines[lines.index("Raises:") + 1 :] if "Raises:" in lines else []
    for line in raises:
        if re.match(r"\S", line):
            break
        if re.match(r" {4}\S", line) and not re.match(r" {4}\w+: If ", line):
            yield f"not 'ERROR: If ...': {line.strip()}"


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_docstrings_have_one_form(package: Package) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in sorted(package.source.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node))
        for fault in faults(docstring)
    ]
    assert not found, "\n".join(found)


def test_faults_of_docstrings_are_found() -> None:
    assert not list(faults("Sum.\n\n    Raises:\n        ValueError: If it is empty.\n            More.\n"))
    assert list(faults("A sum of\n    numbers.")) == ["the summary is no sentence of one line: A sum of"]
    late = "Sum.\n\n    Raises:\n        ValueError: When it is empty.\n    "
    assert list(faults(late)) == ["not 'ERROR: If ...': ValueError: When it is empty."]
