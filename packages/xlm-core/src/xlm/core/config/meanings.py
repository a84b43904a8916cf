"""Meanings of config keys, read from the sources without importing them.

The meaning of a key that the harness reads is the docstring beside its field in
:mod:`xlm.core.config.schema`; that of an argument of a slot is the comment beside it in the YAML file, or
else the entry in the docstring of its class. ``--cfg explained`` and the page of all keys show both.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import yaml

SCHEMA = Path(__file__).with_name("schema.py")


@cache
def field_meanings() -> dict[str, dict[str, str]]:
    """The docstring of each field of each class of the schema."""
    tree = ast.parse(SCHEMA.read_text("utf-8"))
    return {node.name: _fields(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def comment_at(lines: list[str], line: int) -> str:
    """The comment at the end of a line, else that in the line above it."""
    if match := re.search(r"\s#\s*(.+)$", lines[line]):
        return match.group(1)
    if line and (match := re.match(r"\s+#\s*(.+)$", lines[line - 1])):
        return match.group(1)
    return ""


@cache
def argument_meanings(target: str) -> dict[str, str]:
    """Meanings of the arguments in the docstring of a class or function of XLM's packages."""
    found = _definition(target) if target.startswith("xlm") else None
    if found is None:
        return {}
    fields = _fields(found) if isinstance(found, ast.ClassDef) else {}
    return fields | dict(_arguments(ast.get_docstring(found) or ""))


@cache
def argument_defaults(target: str) -> dict[str, str]:
    """Defaults of the arguments of a class or function of XLM's packages, in YAML."""
    found = _definition(target) if target.startswith("xlm") else None
    if isinstance(found, ast.ClassDef):
        body = found.body
        found = next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if found is None:  # a dataclass
            fields = [node for node in body if isinstance(node, ast.AnnAssign)]
            return {ast.unparse(node.target): _as_yaml(node.value) for node in fields if node.value}
    if found is None:
        return {}
    every = found.args
    pairs = [
        *zip(reversed([*every.posonlyargs, *every.args]), reversed(every.defaults), strict=False),
        *zip(every.kwonlyargs, every.kw_defaults, strict=True),
    ]
    return {argument.arg: _as_yaml(value) for argument, value in pairs if value is not None}


def _as_yaml(value: ast.expr) -> str:
    try:
        plain = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
    plain = list(plain) if isinstance(plain, tuple) else plain
    return yaml.safe_dump(plain, default_flow_style=True).strip().removesuffix("...").strip()


def _fields(node: ast.ClassDef) -> dict[str, str]:
    """The docstring below each attribute."""
    return {
        ast.unparse(field.target): " ".join(str(text.value.value).split())
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the section ``Args``."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    text = section[1] if section else ""
    for match in re.finditer(r"^ {4}\*{0,2}(\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE):
        yield match[1], " ".join(match[2].split())


def _definition(target: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function of a dotted name, followed through the imports of its package."""
    module, _, name = target.rpartition(".")
    file = _file(module)
    if file is None:
        return None
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{node.module}.{alias.name}")
    return None


def _file(module: str) -> Path | None:
    """The source of a module, found without importing the packages above it."""
    root, *rest = module.split(".")
    spec = PathFinder.find_spec(root) if root.isidentifier() else None
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(location, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None
