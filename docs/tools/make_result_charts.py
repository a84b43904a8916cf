"""Draws the charts of the result pages from the tables of ``docs/results``.

uv run python docs/tools/make_result_charts.py
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGES = DOCS / "results"

Curve = list[tuple[float, float]]
"""Step and value."""


@dataclass(frozen=True)
class Chart:
    """One picture: a table as curves over the steps."""

    file: str
    section: tuple[str, str]
    """File and heading of the section."""
    table: int
    """Which of the section's tables whose first cell is ``step``."""
    title: str
    low: float
    high: float
    ticks: Sequence[float]


CHARTS = (
    Chart(
        *("results-star-tiny.svg", ("star.md", "## star_tiny: five families"), 0),
        *("star_tiny: exact match on unseen graphs, by step", 0.0, 1.0, (0, 0.25, 0.5, 0.75, 1)),
    ),
    Chart(
        *("results-star-easy.svg", ("star.md", "## star_easy: where the order matters"), 0),
        *("star_easy: exact match on unseen graphs, by step", 0.0, 1.0, (0, 0.25, 0.5, 0.75, 1)),
    ),
    Chart(
        *("results-text-tiny.svg", ("text.md", "## Five families"), 0),
        *("text_tiny: nats per token on validation text, by step", 5.0, 6.75, (5, 5.5, 6, 6.5)),
    ),
)


@dataclass(frozen=True)
class Points:
    """One picture: two tables over rules, of mlm and of mdlm, as points over the evaluations."""

    file: str
    section: tuple[str, str]
    value: str
    """Column of the value."""
    title: str
    low: float
    high: float
    ticks: Sequence[float]
    most: float
    """The largest number of evaluations."""
    named: Mapping[str, tuple[float, float]]
    """Rules of mlm whose names are written, with the position of the name relative to the point: 10 pixels
    or more to the left it ends there."""


RULES = (
    Points(
        *("results-sudoku-rules.svg", ("sudoku.md", "## Decoding rules"), "board accuracy"),
        *("sudoku_tiny: boards solved, by evaluations of a board", 0.55, 1.0, (0.6, 0.7, 0.8, 0.9, 1)),
        most=12,
        named={
            "confidence": (10, 4),
            "any_order": (10, 4),
            "threshold 0.99": (-4, -9),
            "threshold 0.9": (-10, 4),
            "threshold 0.7": (-10, 4),
        },
    ),
    Points(
        *("results-text-rules.svg", ("text.md", "## Decoding rules"), "nats a token"),
        *("text_tiny: nats per token under the sampler, by evaluations of a text", 5.7, 7.2, (6, 6.5, 7)),
        most=40,
        named={
            "confidence": (10, -4),
            "any_order": (10, 14),
            "left_to_right": (10, 14),
            "threshold 0.7": (-10, 4),
            "confidence, 4 steps": (10, 4),
        },
    ),
)


@dataclass(frozen=True)
class Divergences:
    """One picture: the divergence of each family from languages with a known distribution."""

    file: str
    sections: Mapping[str, tuple[str, str]]
    """File and heading of the section of each language."""
    title: str
    ticks: Sequence[float]
    """Of a logarithmic axis, from its lowest to its highest value."""


LANGUAGES = Divergences(
    "results-languages.svg",
    {name: ("languages.md", f"## {name}: against the exact distribution") for name in ("ngram", "hmm")},
    "KL(language, model) in nats a text: arlm exact, the others at most",
    (0.03, 0.1, 0.3, 1, 3, 10),
)
FAMILIES = ("arlm", "mlm", "mdlm", "ilm", "did", "editflow", "flexmdm")
"""A family has one colour and one dash in all charts."""


# ---- the tables of the pages ----------------------------------------------------------------------------


def curves(chart: Chart, pages: Path = PAGES) -> dict[str, Curve]:
    """The curve of each family in a table.

    Raises:
        ValueError: If the section has no such table, or the table no numbers.
    """
    tables = [rows for rows in _tables(pages, chart.section) if rows[0][0] == "step"]
    if len(tables) <= chart.table:
        raise ValueError(f"no table {chart.table} over steps under {chart.section}")
    rows = tables[chart.table]
    if not all(name in FAMILIES for name in rows[0][1:]):  # a family is a row, a step a column
        rows = [list(column) for column in zip(*rows, strict=True)]
    found: dict[str, Curve] = {}
    for place, family in enumerate(rows[0][1:], start=1):
        points = [(_number(row[0]), _number(row[place])) for row in rows[1:]]
        found[family] = [(step, value) for step, value in points if step is not None and value is not None]
    if not all(found.values()):
        raise ValueError(f"a family without a number under {chart.section}")
    return found


def points(chart: Points, pages: Path = PAGES) -> dict[str, dict[str, tuple[float, float]]]:
    """Evaluations and value of each rule, of mlm and of mdlm.

    Raises:
        ValueError: If the section does not have two such tables.
    """
    found_tables = _tables(pages, chart.section)
    tables = [rows for rows in found_tables if rows[0][0] == "rule" and chart.value in rows[0]]
    if len(tables) != 2:
        raise ValueError(f"{len(tables)} tables over rules under {chart.section}, 2 are drawn")
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for family, (head, *rows) in zip(("mlm", "mdlm"), tables, strict=True):
        [cost] = [place for place, name in enumerate(head) if name.startswith("evaluations")]
        cells = {row[0]: (_number(row[cost]), _number(row[head.index(chart.value)])) for row in rows}
        found[family] = {rule: (x, y) for rule, (x, y) in cells.items() if x is not None and y is not None}
    return found


def divergences(chart: Divergences, pages: Path = PAGES) -> dict[str, dict[str, float]]:
    """Of each language, the divergence of each family, in the order of the first language.

    A bound at or below 0, from too few draws, has no place on a logarithmic axis and is omitted.

    Raises:
        ValueError: If a section has no such table, or a cell of it no number.
    """
    found: dict[str, dict[str, float]] = {}
    for language, section in chart.sections.items():
        tables = [rows for rows in _tables(pages, section) if rows[0][0] == "family"]
        if not tables:
            raise ValueError(f"no table of families under {section}")
        head, *rows = tables[0]
        [place] = [place for place, name in enumerate(head) if name.startswith("KL")]
        numbers = {re.match(r"\w*", row[0])[0]: re.search(r"-?\d+\.\d+", row[place]) for row in rows}  # pyright: ignore[reportOptionalSubscript]  # matches always
        if not all(numbers.values()):
            raise ValueError(f"a family without a divergence under {section}")
        values = {family: float(number[0]) for family, number in numbers.items() if number}
        found[language] = {family: value for family, value in values.items() if value > 0}
    return found


def _tables(pages: Path, section: tuple[str, str]) -> list[list[list[str]]]:
    """Cells of each table of a section, without the line under the head."""
    page, heading = section
    parts = re.split(r"(?m)^(?=## )", (pages / page).read_text(encoding="utf-8"))
    text = next((part for part in parts if part.startswith(heading + "\n")), "")
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
svg { --did: #bf3989; --editflow: #9a6700; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --quiet: #9198a1; --line: #3d444d; }
  svg { --arlm: #b1bac4; --mlm: #d2a8ff; --mdlm: #79c0ff; --ilm: #ffa657; --flexmdm: #7ee787; }
  svg { --did: #ff9bce; --editflow: #e3b341; }
}
.paper { fill: #ffffff; fill: var(--paper); }
text { font: 12px system-ui, sans-serif; fill: #59636e; fill: var(--quiet); }
.title { font-size: 14px; fill: #1f2328; fill: var(--ink); }
.grid { stroke: #d0d7de; stroke: var(--line); }
.curve { fill: none; stroke-width: 2.2px; }
.sweep { fill: none; stroke-width: 1.2px; }
.filled { fill: #1f2328; fill: var(--ink); }
.open { fill: none; stroke-width: 2px; stroke: #1f2328; stroke: var(--ink); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
"""
DASHES: Mapping[str, str] = {
    **{"arlm": "2 4", "mlm": "8 4", "mdlm": "none", "ilm": "12 3 3 3", "flexmdm": "5 3"},
    **{"did": "none", "editflow": "3 3 9 3"},
}


def draw(chart: Chart, found: Mapping[str, Curve]) -> str:
    """One chart."""
    last = max(step for curve in found.values() for step, _ in curve)

    def place(step: float, value: float) -> tuple[float, float]:
        share = (value - chart.low) / (chart.high - chart.low)
        return LEFT + (RIGHT - LEFT) * step / last, BOTTOM - (BOTTOM - TOP) * share

    shapes = _frame(chart.title, [(tick, place(0, tick)[1]) for tick in chart.ticks])
    for step in range(0, int(last) + 1, 1000 if last > 3000 else 500):
        x, _ = place(step, chart.low)
        shapes.append(f'<text class="middle" x="{x:.1f}" y="{BOTTOM + 20}">{step}</text>')
    for number, (family, curve) in enumerate(found.items()):
        stroke = f'style="stroke: var(--{family}); stroke-dasharray: {DASHES[family]}"'
        x = LEFT + min(110, (RIGHT - LEFT) // len(found)) * number
        shapes.append(f'<path class="curve" {stroke} d="M{x} 42 h24"/>')
        shapes.append(f'<text x="{x + 29}" y="46">{family}</text>')
        points = [place(*point) for point in curve]
        path = "M" + " L".join(f"{left:.1f} {top:.1f}" for left, top in points)
        shapes.append(f'<path class="curve" {stroke} d="{path}"/>')
    return _picture(chart.title, shapes)


def draw_points(chart: Points, found: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """One chart of rules."""

    def place(evaluations: float, value: float) -> tuple[float, float]:
        share = (value - chart.low) / (chart.high - chart.low)
        return LEFT + (RIGHT - LEFT) * evaluations / chart.most, BOTTOM - (BOTTOM - TOP) * share

    shapes = _frame(chart.title, [(tick, place(0, tick)[1]) for tick in chart.ticks])
    for evaluations in range(0, int(chart.most) + 1, 2 if chart.most < 20 else 8):
        x, _ = place(evaluations, chart.low)
        shapes.append(f'<text class="middle" x="{x:.1f}" y="{BOTTOM + 20}">{evaluations}</text>')
    for number, (family, rules) in enumerate(found.items()):
        x = LEFT + 110 * number
        shapes.append(f'<circle style="fill: var(--{family})" cx="{x + 8}" cy="42" r="4"/>')
        shapes.append(f'<text x="{x + 18}" y="46">{family}</text>')
        for rule, point in rules.items():
            x, y = place(*point)
            title = f"<title>{family}, {rule}: {point[1]:g} with {point[0]:g} evaluations</title>"
            shapes.append(
                f'<circle style="fill: var(--{family})" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
            )
        sweep = [place(*point) for rule, point in rules.items() if re.fullmatch(r"threshold [\d.]+", rule)]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in sweep)
        shapes.append(f'<path class="sweep" style="stroke: var(--{family})" d="M{path}"/>')
    shapes.append(f'<text x="{LEFT + 220}" y="46">line: the rule threshold</text>')
    for rule, (right, down) in chart.named.items():
        x, y = place(*found["mlm"][rule])
        side = ' class="end"' if right <= -10 else ""
        shapes.append(f'<text{side} x="{x + right:.1f}" y="{y + down:.1f}">{rule}</text>')
    return _picture(chart.title, shapes)


def draw_divergences(chart: Divergences, found: Mapping[str, Mapping[str, float]]) -> str:
    """One chart of languages: a column for each family."""
    families = list(dict.fromkeys(family for values in found.values() for family in values))
    low, high = math.log(chart.ticks[0]), math.log(chart.ticks[-1])

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log(value) - low) / (high - low)

    shapes = _frame(chart.title, [(tick, height(tick)) for tick in chart.ticks])
    column = (RIGHT - LEFT) / len(families)
    for number, family in enumerate(families):
        x = LEFT + column * (number + 0.5)
        shapes.append(f'<text class="middle" x="{x:.1f}" y="{BOTTOM + 20}">{family}</text>')
    for number, (language, values) in enumerate(found.items()):
        mark = f'class="{"filled" if number == 0 else "open"}" r="5"'
        shapes.append(f'<circle {mark} cx="{LEFT + 8 + 110 * number}" cy="42"/>')
        shapes.append(f'<text x="{LEFT + 18 + 110 * number}" y="46">{language}</text>')
        for family, value in values.items():
            x = LEFT + column * (families.index(family) + 0.5)
            title = f"<title>{family}, {language}: {value:g}</title>"
            shapes.append(f'<circle {mark} cx="{x:.1f}" cy="{height(value):.1f}">{title}</circle>')
    return _picture(chart.title, shapes)


def _frame(title: str, ticks: Sequence[tuple[float, float]]) -> list[str]:
    """Paper, title, and a line with its number at each height."""
    shapes = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>']
    shapes.append(f'<text class="title" x="{LEFT}" y="22">{title}</text>')
    for tick, y in ticks:
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f} H{RIGHT}"/>')
        shapes.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{tick:g}</text>')
    return shapes


def _picture(title: str, shapes: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def pictures() -> dict[Path, str]:
    """Every chart, by file."""
    assets = DOCS / "assets"
    return {
        **{assets / chart.file: draw(chart, curves(chart)) for chart in CHARTS},
        **{assets / chart.file: draw_points(chart, points(chart)) for chart in RULES},
        assets / LANGUAGES.file: draw_divergences(LANGUAGES, divergences(LANGUAGES)),
    }


def main() -> None:
    """Draw them."""
    for path, picture in pictures().items():
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
