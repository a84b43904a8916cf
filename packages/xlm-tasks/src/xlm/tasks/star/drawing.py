"""A star graph with the path that is being written, for the viewer (``xlm.renderers``)."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

SIZE = 320
_MARGIN = 28
_RADIUS = 13


def draw(prompt: str, tokens: Sequence[str], edited: Collection[int]) -> str | None:
    """Draw the graph of a prompt and the edges of its answer so far.

    Args:
        prompt: The labels of each edge, then source and goal.
        tokens: Two labels for each edge of the path; others are not drawn.
        edited: Positions in ``tokens`` that changed.

    Returns:
        An SVG element; None if the prompt is no graph.
    """
    labels = prompt.split()
    if len(labels) < 4 or len(labels) % 2 or not all(label.isdigit() for label in labels):
        return None
    *ends, source, goal = labels
    edges = list(zip(ends[::2], ends[1::2], strict=True))
    place = _places(edges)
    parts = [_line(place, edge, "faint", 2) for edge in edges]
    for index in range(0, len(tokens) - 1, 2):
        edge = (tokens[index], tokens[index + 1])
        if all(label in place for label in edge):
            is_new = index in edited or index + 1 in edited
            dashes = "" if edge in edges else ' stroke-dasharray="4 4"'
            name, width = ("edited", 8) if is_new else ("given", 4)
            parts.append(_line(place, edge, name, width, dashes))
    for label, (x, y) in place.items():
        shape = f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{_RADIUS}" class="faint"/>'
        if label in (source, goal):
            ring = _RADIUS + (3 if label == goal else 0)
            shape = f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{ring}" class="given"/>'
        over = ' class="over"' if label in (source, goal) else ""
        parts.append(
            f'{shape}<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="14"{over}>'
            f"{label}</text>"
        )
    title = f"from {source} to {goal}"
    return (
        f'<svg viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" role="img"><title>{title}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _places(edges: Sequence[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """The node of most edges in the middle, each arm in a direction of its own."""
    neighbours: defaultdict[str, list[str]] = defaultdict(list)
    for one, other in edges:
        neighbours[one].append(other)
        neighbours[other].append(one)
    hub = max(sorted(neighbours, key=int), key=lambda node: len(neighbours[node]))
    arms = sorted(neighbours[hub], key=int)
    direction = {node: 2 * math.pi * index / len(arms) - math.pi / 2 for index, node in enumerate(arms)}
    depth, front = {hub: 0} | dict.fromkeys(arms, 1), arms
    while front:
        reached = [(node, after) for node in front for after in neighbours[node] if after not in depth]
        for node, after in reached:
            depth[after], direction[after] = depth[node] + 1, direction[node]
        front = [after for _, after in reached]
    scale = (SIZE / 2 - _MARGIN) / max(depth.values())
    # A node that no edge joins to the hub stands in a corner.
    lost = {node: (_MARGIN, _MARGIN) for node in neighbours if node not in depth}
    return lost | {
        node: (
            SIZE / 2 + scale * far * math.cos(direction.get(node, 0.0)),
            SIZE / 2 + scale * far * math.sin(direction.get(node, 0.0)),
        )
        for node, far in depth.items()
    }


def _line(
    place: dict[str, tuple[float, float]], edge: tuple[str, str], name: str, width: int, more: str = ""
) -> str:
    (x1, y1), (x2, y2) = (place[label] for label in edge)
    return (
        f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke-width="{width}" '
        f'class="{name}"{more}/>'
    )
