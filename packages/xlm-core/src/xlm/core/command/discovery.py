"""Which packages bring configs, found without importing any of them.

A package lists its config folder under the entry-point group ``xlm.configs``, for example
``ilm = "xlm_ilm.configs"``. The folder is found through the import system's finders and handed to Hydra
as a file path. (With Hydra's ``pkg://`` every listed package is imported at every start, and one broken
model would stop an unrelated run.)
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

ENTRY_POINT_GROUP = "xlm.configs"


@dataclass(frozen=True)
class ConfigPackage:
    """A folder of Hydra configs and the distribution that brings it."""

    name: str
    distribution: str
    folder: Path | None
    """None when the entry point names a folder that does not exist."""
    dotted: str = ""
    """The folder as the entry point names it, such as ``xlm_ilm.configs``."""

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
    """Folder of a dotted path such as ``xlm_ilm.configs``; no package on the way is imported."""
    root, *rest = dotted.split(".")
    spec = PathFinder.find_spec(root) if root.isidentifier() else None
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    for location in locations:
        folder = Path(location, *rest)
        if folder.is_dir():
            return folder
    return None


def is_part(option: str) -> bool:
    """Whether a config is only what others have in common."""
    return option == "base" or option.endswith("_base")


def providers(group: str) -> dict[str, list[ConfigPackage]]:
    """Packages that offer each config of ``group``; more than one is a clash of names."""
    found: dict[str, list[ConfigPackage]] = defaultdict(list)
    for package in config_packages():
        for option in package.options(group):
            found[option].append(package)
    return dict(sorted(found.items()))
