"""A comparison as one HTML file, with its plots inside and nothing loaded from elsewhere."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --line: #555; --soft: #262626; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
thead th { white-space: normal; min-width: 7rem; vertical-align: bottom; }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
.plots > div { background: #fff; border: 1px solid var(--line); }
.plots svg { width: 100%; height: auto; display: block; }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  td:first-child { white-space: normal; overflow-wrap: break-word; max-width: 45vw; }
}
"""
Row = list[str]


def page(title: str, parts: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The page.

    Args:
        title: Its title.
        parts: Each a text in the Markdown of this package, and the SVG of the plots below its heading.
    """
    body: list[str] = []
    for text, plots in parts:
        heading, *rest = blocks(text)
        drawn = [f"<div>{_inline_svg(svg, name)}</div>" for name, svg in plots.items()]
        body += [heading, *(['<div class="plots">', *drawn, "</div>"] if drawn else []), *rest]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            *body,
            "</body></html>",
            "",
        ]
    )


def _inline_svg(svg: str, name: str) -> str:
    """The element of an SVG file, with ids that are unique in the page."""
    found = svg[svg.index("<svg") :]
    found = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", found)
    return found.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)


def blocks(text: str) -> Iterator[str]:
    """HTML of headings, tables, lists, code and paragraphs."""
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        line = lines[place]
        if line.startswith("```"):
            end = lines.index("```", place + 1)
            yield f"<pre><code>{html.escape(chr(10).join(lines[place + 1 : end]))}</code></pre>"
            place = end
        elif heading := re.match(r"(#+) (.*)", line):
            level = len(heading[1])
            yield f"<h{level}>{_words(heading[2])}</h{level}>"
        elif line.startswith("|") or line.startswith("- "):
            end = place
            while end < len(lines) and lines[end].startswith(line[:1]):
                end += 1
            chunk = lines[place:end]
            yield _table(chunk) if line.startswith("|") else _list(chunk)
            place = end - 1
        elif line:
            yield f"<p>{_words(line)}</p>"
        place += 1


def _table(lines: Sequence[str]) -> str:
    head, _, *rows = (_cells(line) for line in lines)
    parts = [_row(head, "th"), *(_row(row, "td") for row in rows)]
    return (
        f'<div class="wide"><table><thead>{parts[0]}</thead><tbody>{"".join(parts[1:])}</tbody></table></div>'
    )


def _cells(line: str) -> Row:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _row(cells: Row, tag: str) -> str:
    first, *others = (_words(cell) for cell in cells)
    breakable = re.sub(r"(?<=[/_.])(?=\w)", "<wbr>", first)  # on a narrow page
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in (breakable, *others))}</tr>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_words(line[2:])}</li>' for line in lines)}</ul>"


def _words(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
