"""Takes the model template into the distribution; it lies in `templates/model` of the repository."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TemplateHook(BuildHookInterface[Any]):
    """Adds the template as `xlm/scaffold/template`; a wheel built from the sdist finds it there already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; an editable install reads the repository's own."""
        template = Path(self.root).parents[1] / "templates" / "model"
        if version == "editable" or not template.is_dir():
            return
        folder = "src/xlm/scaffold/template" if self.target_name == "sdist" else "xlm/scaffold/template"
        build_data["force_include"][str(template)] = folder
