"""Draws ``docs/assets/architecture.svg``: who brings what, and what passes from one slot to the next.

uv run python docs/tools/make_architecture_picture.py
"""

from pathlib import Path

STYLE = """
svg { --ink: #1f2328; --quiet: #59636e; --line: #8c959f; }
svg { --task: #dafbe1; --family: #ddf4ff; --harness: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --quiet: #9198a1; --line: #656c76; }
  svg { --task: #12351f; --family: #0f2d4a; --harness: #1c2128; }
}
text { font: 14px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }
.small { font-size: 12px; fill: var(--quiet); }
.left { text-anchor: start; }
.code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
rect { stroke: var(--line); rx: 8px; }
.task { fill: var(--task); } .family { fill: var(--family); } .harness { fill: var(--harness); }
path { stroke: var(--line); stroke-width: 1.6px; fill: none; marker-end: url(#tip); }
.tip { fill: var(--line); stroke: none; }
"""
BOXES = (  # left, top, width, kind, title, what it gives
    (20, 70, 170, "task", "source", "raw rows"),
    (20, 150, 170, "task", "preprocess, tokenizer", "rows of ids"),
    (230, 150, 150, "harness", "data module", "examples with seeds"),
    (430, 150, 150, "family", "collator", "batch"),
    (640, 70, 150, "family", "loss", "sum, count, nll"),
    (640, 150, 150, "family", "model", "nn.Module"),
    (640, 230, 150, "family", "predictor", "ids, nfe, trace"),
    (850, 70, 150, "harness", "harness", "step, log, resume"),
    (850, 230, 150, "task", "task metrics", "exact match, ..."),
    (410, 320, 190, "harness", "files of the run", "checkpoints, metrics, texts"),
)
ARROWS = (
    "M105 124 V146", "M190 177 H226", "M380 177 H426", "M580 165 C610 165 610 97 636 97",
    "M580 189 C610 189 610 257 636 257", "M715 124 V146", "M715 230 V208", "M790 97 H846", "M790 257 H846",
    "M1000 97 Q1020 97 1020 117 V327 Q1020 347 1000 347 H604", "M925 284 V327 Q925 347 905 347 H604",
)  # fmt: skip
LEGEND = (
    ("task", "a task: xlm.tasks"),
    ("family", "a family: xlm_ilm, ..."),
    ("harness", "the harness: xlm.core"),
)


def draw() -> str:
    """The picture."""
    shapes = [
        '<text class="left" x="30" y="34">What passes from slot to slot. A colour is a package; '
        "they meet only in the config.</text>"
    ]
    shapes += [f'<path d="{arrow}"/>' for arrow in ARROWS]
    for left, top, width, kind, title, gives in BOXES:
        middle = left + width // 2
        shapes.append(f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="54"/>')
        shapes.append(f'<text x="{middle}" y="{top + 23}">{title}</text>')
        shapes.append(f'<text class="small" x="{middle}" y="{top + 42}">{gives}</text>')
    for number, (kind, text) in enumerate(LEGEND):
        x, y = 30, 300 + 26 * number
        shapes.append(f'<rect class="{kind}" x="{x}" y="{y}" width="22" height="18"/>')
        shapes.append(f'<text class="left small" x="{x + 32}" y="{y + 14}">{text}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1040 395" role="img">\n'
        "<title>Architecture: tasks, families and the harness</title>\n"
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        ' orient="auto">'
        '<path class="tip" style="marker-end: none" d="M0 0 L8 4 L0 8 z"/></marker></defs>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("assets/architecture.svg").write_text(draw(), encoding="utf-8")
