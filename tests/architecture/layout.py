"""What the repository holds, read from its folders, so that a new package is checked without being listed."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Package:
    """A folder below packages/ that holds Python code."""

    distribution: str
    module: str
    source: Path

    @property
    def is_family(self) -> bool:
        """Whether it is a model family: it has a top-level name of its own."""
        return not self.module.startswith("xlm.")


def packages() -> list[Package]:
    """All packages with code, by name."""
    found: list[Package] = []
    for source in sorted(ROOT.glob("packages/*/src")):
        for top in sorted(path for path in source.iterdir() if path.is_dir() and path.suffix != ".egg-info"):
            members = [top] if top.name != "xlm" else sorted(path for path in top.iterdir() if path.is_dir())
            found += [
                Package(source.parent.name, ".".join(path.relative_to(source).parts), path)
                for path in members
                if path.name != "__pycache__"
            ]
    return found
