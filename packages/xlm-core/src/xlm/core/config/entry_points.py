"""What installed packages offer by name: entry points, listed without an import, imported on use."""

from collections import defaultdict
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xlm.core.config.errors import XLMError

USES = "xlm.uses"
"""What a loader may be used for: classes as `xlm.core.evaluation.uses.Use` describes them."""
JOBS = "xlm.jobs"
"""Values of ``job_type``: classes as `xlm.core.command.job` describes them."""
LOSS, GENERATION = "loss", "generation"
"""The uses that two jobs are about: training, and job_type=generate."""


@cache
def offered(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name; several where packages offer different things under one name."""
    found: dict[str, dict[str, EntryPoint]] = defaultdict(dict)
    for point in entry_points(group=group):
        found[point.name][point.value] = point
    return {name: list(points.values()) for name, points in found.items()}


def load(group: str, name: str) -> Any:
    """Import what ``name`` of a group stands for.

    Raises:
        XLMError: When several packages offer it, or the one that does cannot be imported.
    """
    point, *others = offered(group)[name]
    if others:
        owners = " and ".join(f"{owner(each)} ({each.value})" for each in (point, *others))
        raise XLMError(f"{name} of {group} is offered by {owners}. Uninstall all but one of them.")
    try:
        return point.load()
    except Exception as error:  # whatever the package does when it is imported
        raise XLMError(
            f"{name} of {group} is {point.value} of {owner(point)}, which cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def owner(point: EntryPoint) -> str:
    """Name of the distribution that brings it."""
    return point.dist.name if point.dist is not None else "an unknown package"
