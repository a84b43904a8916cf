"""Draws the charts at the head of ``docs/results.md`` from the tables of that page.

uv run python docs/tools/make_result_charts.py
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "results.md"

Curve = list[tuple[float, float]]
"""Step and value."""


@dataclass(frozen=True)
class Chart:
    """One picture: a table of the page as curves over the steps."""

    file: str
    heading: str
    """The section of the page, from its beginning."""
    table: int
    """Which of the section's tables whose first cell is ``step``."""
    title: str
    low: float
    high: float
    ticks: Sequence[float]


CHARTS = (
    Chart(
        *("results-star-tiny.svg", "## star_tiny: five families", 0),
        *("star_tiny: exact match on unseen graphs, by step", 0.0, 1.0, (0, 0.25, 0.5, 0.75, 1)),
    ),
    Chart(
        *("results-star-easy.svg", "## star_easy: where the order matters", 0),
        *("star_easy: exact match on unseen graphs, by step", 0.0, 1.0, (0, 0.25, 0.5, 0.75, 1)),
    ),
    Chart(
        *("results-text-tiny.svg", "## text_tiny: English in minutes", 0),
        *("text_tiny: nats per token on validation text, by step", 5.0, 6.75, (5, 5.5, 6, 6.5)),
    ),
)
FAMILIES = ("arlm", "mlm", "mdlm", "ilm", "flexmdm")
"""A family has one colour and one dash in all charts."""


# ---- the tables of the page -----------------------------------------------------------------------------


def curves(chart: Chart, page: str) -> dict[str, Curve]:
    """The curve of each family in a table of the page.

    Raises:
        ValueError: When the page has no such table, or the table no numbers.
    """
    section = next((part for part in re.split(r"(?m)^(?=## )", page) if part.startswith(chart.heading)), "")
    tables = [rows for rows in _tables(section) if rows[0][0] == "step"]
    if len(tables) <= chart.table:
        raise ValueError(f"{PAGE}: no table {chart.table} over steps under {chart.heading!r}")
    rows = tables[chart.table]
    if not all(name in FAMILIES for name in rows[0][1:]):  # a family is a row, a step a column
        rows = [list(column) for column in zip(*rows, strict=True)]
    found: dict[str, Curve] = {}
    for place, family in enumerate(rows[0][1:], start=1):
        points = [(_number(row[0]), _number(row[place])) for row in rows[1:]]
        found[family] = [(step, value) for step, value in points if step is not None and value is not None]
    if not all(found.values()):
        raise ValueError(f"{PAGE}: a family without a number under {chart.heading!r}")
    return found


def _tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, without the line under the head."""
    blocks = re.findall(r"(?m)(?:^\|.*\|\n)+", text)
    return [
        [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in block.splitlines()
            if "|---" not in line
        ]
        for block in blocks
    ]


def _number(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"\d+(\.\d+)?", cell) else None


# ---- drawing --------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 616, 66, 262
STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --quiet: #59636e; --line: #d0d7de; }
svg { --arlm: #57606a; --mlm: #8250df; --mdlm: #0969da; --ilm: #bc4c00; --flexmdm: #1a7f37; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --quiet: #9198a1; --line: #3d444d; }
  svg { --arlm: #b1bac4; --mlm: #d2a8ff; --mdlm: #79c0ff; --ilm: #ffa657; --flexmdm: #7ee787; }
}
.paper { fill: #ffffff; fill: var(--paper); }
text { font: 12px system-ui, sans-serif; fill: #59636e; fill: var(--quiet); }
.title { font-size: 14px; fill: #1f2328; fill: var(--ink); }
.grid { stroke: #d0d7de; stroke: var(--line); }
.curve { fill: none; stroke-width: 2.2px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
"""
DASHES: Mapping[str, str] = {"arlm": "2 4", "mlm": "8 4", "mdlm": "none", "ilm": "12 3 3 3", "flexmdm": "5 3"}


def draw(chart: Chart, found: Mapping[str, Curve]) -> str:
    """One chart."""
    last = max(step for curve in found.values() for step, _ in curve)

    def place(step: float, value: float) -> tuple[float, float]:
        share = (value - chart.low) / (chart.high - chart.low)
        return LEFT + (RIGHT - LEFT) * step / last, BOTTOM - (BOTTOM - TOP) * share

    shapes = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    shapes.append(f'<text class="title" x="{LEFT}" y="22">{chart.title}</text>')
    for tick in chart.ticks:
        _, y = place(0, tick)
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f} H{RIGHT}"/>')
        shapes.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{tick:g}</text>')
    for step in range(0, int(last) + 1, 1000 if last > 3000 else 500):
        x, _ = place(step, chart.low)
        shapes.append(f'<text class="middle" x="{x:.1f}" y="{BOTTOM + 20}">{step}</text>')
    for number, (family, curve) in enumerate(found.items()):
        stroke = f'style="stroke: var(--{family}); stroke-dasharray: {DASHES[family]}"'
        x = LEFT + 110 * number
        shapes.append(f'<path class="curve" {stroke} d="M{x} 42 h32"/>')
        shapes.append(f'<text x="{x + 38}" y="46">{family}</text>')
        points = [place(*point) for point in curve]
        path = "M" + " L".join(f"{left:.1f} {top:.1f}" for left, top in points)
        shapes.append(f'<path class="curve" {stroke} d="{path}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img">\n<title>{chart.title}</title>\n<style>{STYLE}</style>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def pictures() -> dict[Path, str]:
    """Every chart, by file."""
    page = PAGE.read_text(encoding="utf-8")
    return {DOCS / "assets" / chart.file: draw(chart, curves(chart, page)) for chart in CHARTS}


def main() -> None:
    """Draw them."""
    for path, picture in pictures().items():
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
