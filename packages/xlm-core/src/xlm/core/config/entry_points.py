"""Entry points of installed packages, listed without an import, imported on use."""

from collections import defaultdict
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xlm.core.config.errors import XLMError

USES = "xlm.uses"
"""Uses of a loader: classes that implement ``xlm.core.evaluation.uses.Use``."""
JOBS = "xlm.jobs"
"""Values of ``job_type``: classes of the kinds in ``xlm.core.command.job``."""
RESULTS = "xlm.results"
"""Writers of further files about a result, see ``xlm.core.command.results``."""
PAGES = "xlm.pages"
"""Writers of a page of recorded generations, see ``xlm.core.command.results``."""
LOSS, GENERATION, SAMPLER_LIKELIHOOD = "loss", "generation", "sampler_likelihood"
"""The uses of two jobs, training and job_type=generate, and the one that scores their sampler."""


@cache
def offered(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name; several if packages use a name differently."""
    found: dict[str, dict[str, EntryPoint]] = defaultdict(dict)
    for point in entry_points(group=group):
        found[point.name][point.value] = point
    return {name: list(points.values()) for name, points in found.items()}


def load(group: str, name: str) -> Any:
    """Import the object of ``name`` in a group.

    Raises:
        XLMError: If several packages offer it, or its package cannot be imported.
    """
    point, *others = offered(group)[name]
    if others:
        owners = " and ".join(f"{owner(each)} ({each.value})" for each in (point, *others))
        raise XLMError(f"{name} of {group} is offered by {owners}. Uninstall all but one of them.")
    try:
        return point.load()
    except Exception as error:  # an import can raise anything
        raise XLMError(
            f"{name} of {group} is {point.value} of {owner(point)}, which cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def owner(point: EntryPoint) -> str:
    """Name of its distribution."""
    return point.dist.name if point.dist is not None else "an unknown package"
