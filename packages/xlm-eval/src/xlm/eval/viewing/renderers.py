"""Pictures of texts that are no prose: what a task brings by an entry point.

A package that draws the texts of a task declares a function::

    [project.entry-points."xlm.renderers"]
    star = "xlm.tasks.star.drawing:draw"

It is called as ``draw(prompt, tokens, edited)`` with the decoded prompt, the tokens after a step, and the
positions edited in it, and returns an SVG element of the same size for each step, or None to draw nothing.
Its name is that of the task or the beginning of it: ``star`` draws ``star_tiny`` too. The page colours the
classes ``edited`` (changed in this step), ``given`` and ``faint``.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, cast

from xlm.core.config.entry_points import load, offered

RENDERERS = "xlm.renderers"


class Renderer(Protocol):
    """Draws the state of a text."""

    def __call__(self, prompt: str, tokens: Sequence[str], edited: Collection[int], /) -> str | None:
        """An SVG element, or None."""
        ...


def renderer_of(task: str) -> Renderer | None:
    """The renderer of a task, the one with the longest name; None if no package brings one."""
    names = [name for name in offered(RENDERERS) if task == name or task.startswith(f"{name}_")]
    return cast("Renderer", load(RENDERERS, max(names, key=len))) if names else None
