"""Plots as SVG and PDF, readable in black and white: series differ in markers and dashes, not in colour."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

from xlm.eval.plot_data import Plot

mpl.use("agg")

import matplotlib.pyplot as plt  # after the choice of the backend
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # the same

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
GREYS = ("0.0", "0.45", "0.25", "0.6")
SIZE = (6.4, 4.2)
"""Width and height in inches."""
STYLE: Any = {
    "font.size": 10, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "xlm",
    "pdf.fonttype": 42, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "0.9", "legend.frameon": False, "figure.dpi": 100,
}  # fmt: skip


def draw(plot: Plot, stem: Path) -> list[Path]:
    """Write a plot as SVG and PDF, and return both paths."""
    paths = [stem.with_suffix(".svg"), stem.with_suffix(".pdf")]
    with mpl.rc_context(STYLE):
        canvas, axes = plt.subplots(figsize=SIZE, layout="constrained")
        _fill(axes, plot)
        for path in paths:
            canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"CreationDate": None})
        plt.close(canvas)
    return paths


def _fill(axes: Any, plot: Plot) -> None:
    for number, (name, points) in enumerate(plot.series.items()):
        dash, grey = DASHES[number % len(DASHES)], GREYS[number % len(GREYS)]
        marker = MARKERS[number % len(MARKERS)]
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.plot(
            xs, ys, dash, color=grey, marker=marker, markersize=5, linewidth=1.3, label=name,
            markerfacecolor="white" if number % 2 else grey,
        )  # fmt: skip
        lows, highs = [point.low for point in points], [point.high for point in points]
        if plot.kind == "curves":
            axes.fill_between(xs, lows, highs, color=grey, alpha=0.15, linewidth=0)
            continue
        spans = [
            [max(y - low, 0.0) for y, low in zip(ys, lows, strict=True)],
            [max(high - y, 0.0) for y, high in zip(ys, highs, strict=True)],
        ]
        axes.errorbar(xs, ys, yerr=spans, fmt="none", ecolor=grey, elinewidth=0.8, capsize=2)
        offset = (5, -10) if number % 2 else (5, 4)  # those of neighbours on two sides of their lines
        for point in points:
            place = {"xytext": offset, "textcoords": "offset points", "fontsize": 8, "color": grey}
            axes.annotate(point.note, (point.x, point.y), **place)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    xs = [point.x for points in plot.series.values() for point in points]
    if plot.kind == "points" and min(xs) > 0 and max(xs) > 8 * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))  # labels of many digits do not overlap
    if len(plot.series) > 1 or plot.notes:
        axes.legend(fontsize=8, title=plot.notes, title_fontsize=8)
