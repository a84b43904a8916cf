"""The jobs of xlm-eval, declared without heavy imports."""

from typing import Annotated, cast

from pydantic import BeforeValidator, Field
from typing_extensions import override

from xlm.core.command.job import Tool


def _names(given: object) -> object:
    """A list of names from ``a,b`` or ``[a,b]``, also if the names have special characters of YAML."""
    if given is None:
        return []
    if isinstance(given, str):
        return [name.strip().strip("'\"") for name in given.removeprefix("[").removesuffix("]").split(",")]
    return [str(name) for name in cast("list[object]", given)] if isinstance(given, list) else [str(given)]


class Compare(Tool):
    """One table over runs and seeds: 'runs=[runs/a_s*,runs/b]'."""

    runs: Annotated[list[str], BeforeValidator(_names)] = Field(default_factory=list[str])
    """Folders of runs, or patterns of them."""
    output_dir: str = "runs"
    """Parent folder of the comparison, which is written to ``compare/TIME``."""

    @override
    def run(self) -> int:
        from xlm.eval.compare import compare

        compare(self.runs, self.output_dir)
        return 0
