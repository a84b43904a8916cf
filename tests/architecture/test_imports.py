"""Who may import whom. Lists of what is allowed, not of what is forbidden: a new library is a decision."""

import re
import sys

import grimp
import pytest

from .layout import Package, packages

ALLOWED = {
    "family": {"torch", "jaxtyping", "huggingface_hub", "safetensors", "xlm.modules"},
    "xlm.modules": {"torch", "jaxtyping", "pytest"},
    "xlm.tasks": {"torch", "numpy", "datasets", "transformers", "tokenizers", "rdkit", "safe"},
    "xlm.scaffold": {"copier"},
    "xlm.eval": {
        "torch", "omegaconf", "pydantic", "typing_extensions", "rich", "matplotlib", "xlm.core",
        "xlm.modules",
    },
    "xlm.core": {
        "torch", "lightning", "torchmetrics", "hydra", "omegaconf", "pydantic", "pydantic_core", "datasets",
        "transformers", "huggingface_hub", "safetensors", "filelock", "xxhash", "rich", "yaml", "numpy",
        "pyarrow", "psutil", "typing_extensions", "xlm.modules",
    },
}  # fmt: skip

EXTRAS = {"xlm.modules.hub": {"huggingface_hub", "safetensors"}}
"""Modules that need an extra of their package: imported by other packages only."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    names = [package.module for package in packages()]
    return grimp.build_graph(*names, include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_a_package_imports_only_what_it_may(graph: grimp.ImportGraph, package: Package) -> None:
    allowed = ALLOWED["family" if package.is_family else package.module]
    own = {package.module} | graph.find_descendants(package.module)
    foreign = {
        _owner(imported)
        for module in own
        for imported in graph.find_modules_directly_imported_by(module)
        if imported not in own and imported not in EXTRAS.get(module, ())
        if not (imported == "transformers" and is_for_transformers(module))
    }
    unexpected = {name for name in foreign if name not in allowed and name not in sys.stdlib_module_names}
    assert not unexpected, f"{package.module} imports {sorted(unexpected)}; it may import {sorted(allowed)}"


def is_for_transformers(module: str) -> bool:
    """Whether a module is the one of its family that registers transformers' Auto classes."""
    family = module.partition(".")[0].removeprefix("xlm_")
    return module == f"xlm_{family}.hf_{family}"


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.module)
def test_nobody_imports_the_classes_for_transformers(graph: grimp.ImportGraph, package: Package) -> None:
    for module in graph.find_descendants(package.module):
        if is_for_transformers(module):
            assert not graph.find_modules_that_directly_import(module)


@pytest.mark.parametrize("module", EXTRAS)
def test_a_package_does_without_its_extras(graph: grimp.ImportGraph, module: str) -> None:
    package = _owner(module)
    assert not {name for name in graph.find_modules_that_directly_import(module) if _owner(name) == package}


def _owner(module: str) -> str:
    """Package that a module belongs to: ``xlm.core`` for ours, the first name for all others."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "xlm" else parts[0]


def test_the_check_sees_imports(graph: grimp.ImportGraph) -> None:
    imported = graph.find_modules_directly_imported_by("xlm.core.training.harness")
    assert "lightning" in imported
    assert "xlm.core.evaluation.evaluation" in imported


ROOMS = ["command", "hub", "training", "evaluation", "saving", "data", "config"]
"""The folders of xlm-core as layers, the highest first."""


def test_the_rooms_of_the_core_are_layers(graph: grimp.ImportGraph) -> None:
    """A module imports from its own folder and from lower ones only; the Protocols import none of them."""
    folders = graph.find_children("xlm.core") - {
        "xlm.core.protocols",
        "xlm.core.__main__",
    }
    assert folders == {f"xlm.core.{room}" for room in ROOMS}
    upwards = [
        f"{importer} imports {imported}"
        for importer in sorted(graph.find_descendants("xlm.core"))
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if imported.startswith("xlm.core.") and _height(imported) > _height(importer)
    ]
    assert not upwards, upwards


def _height(module: str) -> int:
    """Of the layer that a module of the core belongs to; the Protocols lie below all."""
    room = module.split(".")[2]
    if room == "__main__":
        return len(ROOMS)
    return -1 if room == "protocols" else len(ROOMS) - 1 - ROOMS.index(room)


def test_one_module_names_the_files_of_a_run() -> None:
    """Everything else imports the names; ``.hydra/config.yaml`` is Hydra's own."""
    core = next(package for package in packages() if package.module == "xlm.core").source
    names = re.findall(r'= ("[\w.]+")', (core / "config" / "run_files.py").read_text("utf-8"))
    assert len(names) > 5
    found = {
        (file.name, name)
        for file in core.rglob("*.py")
        for name in names
        if "." in name and name in file.read_text("utf-8")
    }
    assert found == {("run_files.py", name) for name in names if "." in name} | {
        ("compose.py", '"config.yaml"')
    }
