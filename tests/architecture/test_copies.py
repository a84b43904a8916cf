"""Code that stands in several families on purpose: a copy marked ``# Copied from MODULE.NAME`` is one.

Compared are the syntax trees, without docstrings and with the name of either family in them replaced, as in
transformers' ``utils/check_copies.py``.
"""

import ast
import re
from collections.abc import Iterator
from difflib import unified_diff
from itertools import combinations

import pytest

from .layout import ROOT, Package, packages

MARK = re.compile(r"^ *# Copied from (?P<original>[\w.]+)$")
FEWEST_NODES = 40
"""Of a definition that is worth a mark; what is smaller may be equal by chance."""
OURS = [
    family
    for family in packages()
    if family.is_family and not (family.source.parents[1] / "LICENSE").exists()
]
"""The families, without packages made by a reader with `xlm-scaffold`, whose code is her own."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """The classes and functions of a module or class; of overloads the last, which is the function."""
    for node in tree.body:
        if isinstance(node, Definition) and "overload" not in map(ast.unparse, node.decorator_list):
            yield node


def comparable(node: Definition, module: str) -> str:
    """Source of a definition without comments, docstrings and the family's name, such as MLM or xlm_mlm."""
    copy = ast.parse(ast.unparse(node)).body[0]
    for part in ast.walk(copy):
        if isinstance(part, Definition):
            part.body = [statement for statement in part.body if not is_docstring(statement)] or [ast.Pass()]
    family = module.split(".")[0].removeprefix("xlm_")
    return re.sub(rf"(?<![A-Za-z])(?i:{family})(?![a-z])", "Family", ast.unparse(copy))


def is_docstring(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
        case _:
            return False


def marks(source: str) -> Iterator[tuple[str, Definition | None]]:
    """What each mark of a file names, and the definition below it, None if there is none."""
    below = {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, Definition)
    }
    for number, line in enumerate(source.splitlines(), start=1):
        if match := MARK.match(line):
            yield match["original"], below.get(number + 1)


def original(name: str) -> Definition | None:
    """The definition of a dotted name such as ``xlm_mlm.layout_mlm.Layout``."""
    module, stem, *path = name.split(".")
    file = ROOT / f"packages/{module.replace('_', '-')}/src/{module}/{stem}.py"
    if not file.is_file():
        return None
    found: ast.Module | Definition | None = ast.parse(file.read_text(encoding="utf-8"))
    for part in path:
        if not isinstance(found, ast.Module | ast.ClassDef):
            return None
        found = next((node for node in definitions(found) if node.name == part), None)
    return None if isinstance(found, ast.Module) else found


def complaint(source: str, module: str) -> str:
    """How the marked copies in a file differ from their originals; nothing if they do not."""
    said: list[str] = []
    for name, copy in marks(source):
        first = original(name)
        if copy is None or first is None:
            what = "stands above no definition" if copy is None else "names what does not exist"
            said.append(f"the mark of {name} {what}")
            continue
        before, after = (comparable(first, name).splitlines(), comparable(copy, module).splitlines())
        said += unified_diff(before, after, name, f"{module}.{copy.name}", lineterm="")
    return "\n".join(said)


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_marked_copies_are_equal(package: Package) -> None:
    for path in sorted(package.source.rglob("*.py")):
        found = complaint(path.read_text(encoding="utf-8"), f"{package.module}.{path.stem}")
        assert not found, f"{path.relative_to(ROOT)}: change both, or take the mark away\n{found}"


def test_equal_code_of_two_families_is_marked() -> None:
    code: dict[str, dict[str, str]] = {package.module: {} for package in OURS}
    marked: set[str] = set()
    for package in OURS:
        for path in sorted(package.source.glob("*.py")):
            source = path.read_text(encoding="utf-8")
            marked |= {f"{package.module}.{path.stem}.{copy.name}" for _, copy in marks(source) if copy}
            for node in definitions(ast.parse(source)):
                if sum(1 for _ in ast.walk(node)) >= FEWEST_NODES:
                    code[package.module][f"{path.stem}.{node.name}"] = comparable(node, package.module)
    unmarked = [
        f"{one}.{first} and {two}.{second}"
        for one, two in combinations(code, 2)
        for first, before in code[one].items()
        for second, after in code[two].items()
        if before == after and not {f"{one}.{first}", f"{two}.{second}"} & marked
    ]
    assert not unmarked, f"equal, and neither is marked '# Copied from ...': {unmarked}"


def test_the_check_sees_differences() -> None:
    head = "# Copied from xlm_mlm.vocabulary_mlm.CellVocabulary\n"
    source = (ROOT / "packages/xlm-mlm/src/xlm_mlm/vocabulary_mlm.py").read_text(encoding="utf-8")
    copy = source.replace("class CellVocabulary", f"{head}class CellVocabulary")
    assert complaint(copy, "xlm_mdlm.vocabulary_mdlm") == ""
    assert complaint(copy.replace("The token ids that", "Those that"), "xlm_mdlm.vocabulary_mdlm") == ""
    changed = complaint(copy.replace("def ends(", "def stops("), "xlm_mdlm.vocabulary_mdlm")
    assert "-    def ends(" in changed
    assert "+    def stops(" in changed
    assert "names what does not exist" in complaint(copy.replace("mlm.Cell", "mlm.Sell"), "xlm_mdlm.any")
    assert "stands above no definition" in complaint(f"{head}\nclass CellVocabulary: ...\n", "xlm_mdlm.any")
