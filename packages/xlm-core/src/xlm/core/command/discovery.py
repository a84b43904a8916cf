"""Discovery of the packages with configs and jobs, without importing them.

A package lists its config folder under the entry-point group ``xlm.configs``, for example
``ilm = "xlm_ilm.configs"``. The folder is located through the import system's finders and passed to Hydra
as a file path. (With Hydra's ``pkg://`` every start imports every listed package, and one broken model would
stop an unrelated run.) Jobs are listed under ``xlm.jobs``, see ``xlm.core.command.job``.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from xlm.core.config.entry_points import JOBS, offered, owner

ENTRY_POINT_GROUP = "xlm.configs"


@dataclass(frozen=True)
class ConfigPackage:
    """A folder of Hydra configs and its distribution."""

    name: str
    distribution: str
    folder: Path | None
    """None when the entry point names a folder that does not exist."""
    dotted: str = ""
    """The folder in the entry point, such as ``xlm_ilm.configs``."""

    def options(self, group: str) -> list[str]:
        """Names of the configs in ``group``, sorted."""
        if self.folder is None:
            return []
        return sorted(path.stem for path in (self.folder / group).glob("*.yaml"))


@cache
def config_packages() -> tuple[ConfigPackage, ...]:
    """All installed config packages, the core first, then by name."""
    packages = {
        point.value: ConfigPackage(
            name=point.name,
            distribution=point.dist.name if point.dist is not None else point.name,
            folder=find_folder(point.value),
            dotted=point.value,
        )
        for point in entry_points(group=ENTRY_POINT_GROUP)
    }
    return tuple(sorted(packages.values(), key=lambda package: (package.name != "core", package.name)))


def find_folder(dotted: str) -> Path | None:
    """Folder of a dotted path such as ``xlm_ilm.configs``; no package on its path is imported."""
    root, *rest = dotted.split(".")
    spec = PathFinder.find_spec(root) if root.isidentifier() else None
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    for location in locations:
        folder = Path(location, *rest)
        if folder.is_dir():
            return folder
    return None


def is_part(option: str) -> bool:
    """Whether a config is only a base of others."""
    return option == "base" or option.endswith("_base")


def providers(group: str) -> dict[str, list[ConfigPackage]]:
    """Packages that offer each config of ``group``; more than one is a name clash."""
    found: dict[str, list[ConfigPackage]] = defaultdict(list)
    for package in config_packages():
        for option in package.options(group):
            found[option].append(package)
    return dict(sorted(found.items()))


def job_names() -> list[str]:
    """Values of ``job_type``: the core's first, those of a module in the order of its source."""

    def place(name: str) -> tuple[bool, str, int]:
        point = offered(JOBS)[name][0]
        classes = [*_summaries(point.module), point.attr]
        return owner(point) != "xlm-core", point.module, classes.index(point.attr)

    return sorted(offered(JOBS), key=place)


def summary(point: EntryPoint) -> str:
    """First line of the docstring of a job's class; empty where there is none."""
    return _summaries(point.module).get(point.attr, "")


@cache
def _summaries(module: str) -> dict[str, str]:
    """First line of the docstring of each class of a module, which is read and not imported."""
    *above, name = module.split(".")
    folder = find_folder(".".join(above)) if above else None
    spec = PathFinder.find_spec(name, [str(folder)] if folder is not None else None)
    if spec is None or spec.origin is None or not spec.has_location:
        return {}
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # reported when the job is used
        return {}
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".") for node in classes}
