"""Names in docstrings exist: those of ours can be imported, others in backticks stand in the code."""

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache

import pytest

from .layout import ROOT, Package, packages

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([\w.]+)`")
NAME = re.compile(r"(?<![:`\w])`{1,2}([a-z][a-z.]*_[a-z_.]*[a-z])`{1,2}")
"""A name with an underscore, which is no English word; those with digits may be made at run time."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FROM_ELSEWHERE = {
    "access_key",
    "api_key",
    "inverse_sqrt",
    "warmup_stable_decay",
    "cosine_with_min_lr",
    "mc_labels",
    "hatch_build",
    "py",
}
"""Names of other projects' files, keys and options."""


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings, and the strings that stand below a field or a constant to explain it."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED):
            for statement in node.body:
                match statement:
                    case ast.Expr(ast.Constant(str() as text)):
                        yield text
                    case _:
                        pass


@cache
def words_of_the_code() -> frozenset[str]:
    """Every word of Python code and strings that are no docstrings, and of YAML and TOML files."""
    words: set[str] = set()
    for path in ROOT.glob("packages/*/src/**/*.py"):
        text = path.read_text(encoding="utf-8")
        explained = set(docstrings(ast.parse(text)))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            is_docstring = token.type == tokenize.STRING and token.string.strip("\"'") in explained
            if token.type in (tokenize.NAME, tokenize.STRING) and not is_docstring:
                words.update(re.findall(r"[A-Za-z_]\w*", token.string))
    for pattern in ("packages/*/src/**/*.yaml", "packages/*/pyproject.toml", "noxfile.py"):
        for path in ROOT.glob(pattern):
            words.update(re.findall(r"[A-Za-z_]\w*", path.read_text(encoding="utf-8")))
    return frozenset(words)


def resolves(name: str) -> bool:
    """Whether a dotted name of ours is a module, or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[cut:])
    return False


def exists(name: str) -> bool:
    """Whether a name of ours can be imported, and any other stands in the code."""
    if name.startswith("xlm") and name != "xlm_ilm.model_ilm.os.system":  # an example of what is refused
        return resolves(name)
    return set(name.split(".")) <= words_of_the_code() | FROM_ELSEWHERE


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_names_in_docstrings_exist(package: Package) -> None:
    lost = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(package.source.rglob("*.py"))
        for docstring in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        for name in (*ROLE.findall(docstring), *NAME.findall(docstring))
        if not exists(name)
    ]
    assert not lost, lost
