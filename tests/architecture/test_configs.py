"""Import contracts for the names that no import graph sees: every ``_target_`` in every YAML."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .layout import ROOT, Package, packages

HARNESS = {"torch", "lightning", "transformers", "datasets", "torchmetrics"}


def config_files() -> list[tuple[Package, Path]]:
    return [
        (package, path)
        for package in packages()
        for path in sorted(package.source.rglob("configs/**/*.yaml"))
    ]


def targets(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def may_name(package: Package) -> set[str]:
    blocks = {"xlm.modules"} if package.is_family or package.module == "xlm.core" else set[str]()
    return HARNESS | blocks | {package.module}


@pytest.mark.parametrize(("package", "path"), config_files(), ids=lambda value: getattr(value, "name", ""))
def test_targets_name_only_what_the_package_may_use(package: Package, path: Path) -> None:
    for target in targets(yaml.safe_load(path.read_text())):
        parts = target.split(".")
        owner = ".".join(parts[:2]) if parts[0] == "xlm" else parts[0]
        assert owner in may_name(package), f"{path.relative_to(ROOT)} names {target}"


def test_no_two_packages_offer_the_same_config() -> None:
    seen: dict[str, Path] = {}
    for _, path in config_files():
        name = str(path).rpartition("/configs/")[2]
        assert name not in seen, f"{name} is in {seen[name]} and in {path}"
        seen[name] = path


def test_the_scan_finds_targets() -> None:
    found = {target for _, path in config_files() for target in targets(yaml.safe_load(path.read_text()))}
    assert {"xlm.modules.FusedAdamW", "xlm_ilm.ILM"} <= found
