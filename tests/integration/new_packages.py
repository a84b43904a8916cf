"""Packages made by ``xlm-scaffold``, put on the path with the metadata that installing them would write."""

import sys
import tomllib
from pathlib import Path

from xlm.core.command.discovery import config_packages
from xlm.scaffold import cli

FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"


def make_package(name: str, folder: Path, family: str) -> Path:
    """Make ``xlm-NAME`` in a folder. Its ``src`` has to be put on the path by the caller."""
    cli.main([name, str(folder), "--from", family, "--xlm", "index"])
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder / "src" / f"xlm_{name}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    config_packages.cache_clear()
    return folder


def forget(*names: str) -> None:
    """Forget packages that were imported."""
    config_packages.cache_clear()
    modules = {f"xlm_{name}" for name in names}
    for module in [module for module in sys.modules if module.split(".")[0] in modules]:
        del sys.modules[module]
