"""How time and memory of a training pass and the time of generation grow, and a picture of it.

    OMP_NUM_THREADS=1 uv run python benchmarks/growth.py --out growth.json
    uv run --with matplotlib python benchmarks/growth.py --draw growth.json \\
        --picture docs/assets/growth.svg

Forward and backward at width 128, one size changed at a time; each point in a process of its own, CPU seconds
of one thread, the shortest of three. Memory is the highest resident set above the one before, as in
training.py. Generation: 8 rows from nothing, with the samplers of generation.py.
"""

import argparse
import itertools
import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from generation import text_run
from gpu_families import NAMES, Size, mean_loss, text_parts, texts
from training import cpu_seconds, resident

BASE = {"batch": 4, "length": 256, "vocabulary": 8_000, "depth": 4}
AXES = {
    "batch": (2, 4, 8),
    "length": (128, 256, 512, 1024),
    "vocabulary": (8_000, 16_000, 32_000),
    "depth": (2, 4, 8),
    "generated length": (16, 32, 64, 128),
}
TINY = {axis: values[:2] for axis, values in AXES.items()}
Point = dict[str, Any]


def network(vocabulary: int, depth: int) -> Size:
    """The network of all points."""
    return Size(d_model=128, num_layers=depth, num_heads=4, vocab_size=vocabulary)


def train(family: str, sizes: dict[str, int]) -> tuple[float, float]:
    """Seconds of a pass, and megabytes."""
    size = network(sizes["vocabulary"], sizes["depth"])
    parts = text_parts(family, size, sizes["length"])
    batch = parts.collate(texts(0, sizes["batch"], sizes["length"], size.vocab_size))

    def step() -> None:
        parts.model.zero_grad()
        mean_loss(parts, parts.model, batch).backward()

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    megabytes = (resident("VmHWM") - before) / 1e6
    return min(cpu_seconds(step) for _ in range(3)), megabytes


def measure(family: str, axis: str, value: int) -> Point:
    """One point of the picture."""
    torch.set_num_threads(1)
    point: Point = {"family": family, "axis": axis, "value": value}
    if axis == "generated length":
        _, generate = text_run(family, network(BASE["vocabulary"], BASE["depth"]), value)
        return point | {"seconds": cpu_seconds(generate)}
    seconds, megabytes = train(family, BASE | {axis: value})
    return point | {"seconds": seconds, "megabytes": megabytes}


def measure_all(families: Sequence[str], axes: dict[str, tuple[int, ...]]) -> list[Point]:
    """All points, each in a process that begins with nothing of the others."""
    context = multiprocessing.get_context("fork")
    found: list[Point] = []
    for axis, values in axes.items():
        for family in families:
            for value in values:
                with context.Pool(1) as pool:
                    found.append(pool.apply(measure, (family, axis, value)))
    return found


def exponents(points: Sequence[Point], axis: str, family: str, what: str) -> list[float]:
    """b of time ~ size^b between neighbouring points."""
    of = [(p["value"], p[what]) for p in points if p["axis"] == axis and p["family"] == family and what in p]
    return [
        math.log(after / before) / math.log(high / low)
        for (low, before), (high, after) in itertools.pairwise(of)
    ]


def table(points: Sequence[Point]) -> str:
    """Markdown: the exponent of the last doubling, of time and of memory."""
    families = list(dict.fromkeys(point["family"] for point in points))
    lines = [f"| | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
    for axis in dict.fromkeys(point["axis"] for point in points):
        for what in ("seconds", "megabytes"):
            cells = [exponents(points, axis, family, what)[-1:] for family in families]
            if all(cells):
                numbers = " | ".join(f"{cell[0]:.2f}" for cell in cells)
                lines.append(f"| {'time' if what == 'seconds' else 'memory'} by {axis} | {numbers} |")
    return "\n".join(lines)


STYLES = {
    "arlm": ("black", "-", "o"),
    "mlm": ("0.45", "--", "s"),
    "ilm": ("black", ":", "^"),
    "mdlm": ("0.45", "-.", "D"),
    "flexmdm": ("black", (0, (7, 2)), "x"),
}
"""Gray, dash and mark of a family: no colour is needed to tell them."""


def draw(points: Sequence[Point], picture: Path) -> None:
    """Draw time above memory, one column for each size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "growth", "font.size": 9})
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point["axis"] for point in points))
    rows = {"seconds": "CPU seconds", "megabytes": "megabytes"}
    sheet, grid = pyplot.subplots(2, len(axes), figsize=(2.4 * len(axes), 5.6), sharey="row", squeeze=False)
    for row, (what, label) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, chart in zip(axes, row, strict=True):
            some = [point for point in points if point["axis"] == axis and what in point]
            if not some:
                chart.set_visible(False)
                continue
            for family, (colour, dashes, mark) in STYLES.items():
                line = [(point["value"], point[what]) for point in some if point["family"] == family]
                chart.plot(
                    *zip(*line, strict=True),
                    color=colour, linestyle=dashes, marker=mark, markersize=4, linewidth=1.2, label=family,
                )  # fmt: skip
            ticks = sorted({point["value"] for point in some})
            chart.set_xscale("log", base=2)
            chart.set_yscale("log")
            chart.set_xticks(ticks, [f"{tick // 1000}k" if tick >= 2000 else str(tick) for tick in ticks])
            chart.set_xlabel(axis)
            chart.minorticks_off()
            chart.grid(color="0.88", linewidth=0.6)
    handles, labels = grid[0][0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="lower right", ncols=1, frameon=False, handlelength=3.2)
    sheet.tight_layout()
    sheet.savefig(picture, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--tiny", action="store_true", help="two points for each line")
    parser.add_argument("--out", type=Path, help="measure, and write the points")
    parser.add_argument("--draw", type=Path, help="points to draw")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(arguments)
    if options.draw is not None:
        draw(json.loads(options.draw.read_text()), options.picture)
        return
    axes = {axis: (TINY if options.tiny else AXES)[axis] for axis in options.axes}
    points = measure_all(options.families, axes)
    if options.out is not None:
        options.out.write_text(json.dumps(points))
    print(table(points))


if __name__ == "__main__":
    main()
