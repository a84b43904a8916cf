"""Takes the template and the families, which lie elsewhere in the repository, into the distribution."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("pyproject.toml", "README.md", "src", "tests")


class TemplateHook(BuildHookInterface[Any]):
    """Adds `xlm/scaffold/template` and `families`; a wheel built from the sdist finds them there already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; an editable install reads the repository's own."""
        repository = Path(self.root).parents[1]
        if version == "editable" or not (repository / "templates" / "model").is_dir():
            return
        into = "src/xlm/scaffold" if self.target_name == "sdist" else "xlm/scaffold"
        included = build_data["force_include"]
        included[str(repository / "templates" / "model")] = f"{into}/template"
        for package in families(repository):
            for part in PARTS:
                included[str(package / part)] = f"{into}/families/{package.name}/{part}"


def families(repository: Path) -> list[Path]:
    """Packages of model families: those with configs and a name of their own."""
    members = [path.parents[2] for path in repository.glob("packages/xlm-*/src/xlm_*/configs")]
    return [member for member in sorted(members) if not (member / "LICENSE").exists()]
