"""The job ``compare``: tables, paired intervals and plots of finished runs, as files and as one page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from xlm.core.command.cli import show
from xlm.eval.compared_plots import plots, quality_of
from xlm.eval.comparison_text import LEGEND, as_json, command_lines, pair_lines, table_lines
from xlm.eval.finished_runs import read_runs
from xlm.eval.page import page
from xlm.eval.pairs import marks
from xlm.eval.tables import Table, summarise

REPORT = "report.html"
NO_QUALITY = (
    "No plot of quality: the monitored metric is not one of the generated texts. Choose one: "
    "quality=LOADER/METRIC"
)


def compare(patterns: Sequence[str], output_dir: str, quality: str | None = None) -> None:
    """Compare runs, and write ``comparison.md``, ``comparison.json``, ``report.html`` and the plots.

    Args:
        patterns: Folders of runs, or patterns of them.
        output_dir: Parent of the new folder of the comparison.
        quality: Metric of the vertical axis of the plots, such as ``prediction/exact_match``; None for the
            monitored one.

    Raises:
        XLMError: If there is nothing to compare, a run has no results, or ``quality`` was not measured.
    """
    runs, left_out = read_runs(patterns)
    tables = summarise(runs)
    qualities = {task: quality_of(table, quality) for task, table in tables.items()}
    command = ["xlm", "job_type=compare", f"runs=[{','.join(patterns)}]"]
    command += [f"quality={quality}"] if quality is not None else []
    texts = {task: "\n".join(_task_lines(task, table, qualities[task])) for task, table in tables.items()}
    ending = "\n".join([*LEGEND, "", *left_out, *([""] if left_out else [])])
    repeat = "\n".join(["## Commands", "", *command_lines(runs, shlex.join(command)), ""])
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    folder = Path(output_dir).expanduser() / "compare" / stamp
    folder.mkdir(parents=True)
    text = "\n".join([*texts.values(), ending, repeat])
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    (folder / "comparison.json").write_text(json.dumps(as_json(tables), indent=2) + "\n", encoding="utf-8")
    drawn = {task: _draw(folder, task, table, qualities[task]) for task, table in tables.items()}
    parts = [(texts[task], drawn[task]) for task in tables]
    title = f"Comparison of {len(runs)} runs on {', '.join(tables)}"
    (folder / REPORT).write_text(page(title, [*parts, (ending, {}), (repeat, {})]), encoding="utf-8")
    show(
        f"{text}\nfiles\n  {folder / 'comparison.md'}\n  {folder / 'comparison.json'}\n  {folder / REPORT}"
        + "".join(f"\n  {path}" for path in sorted(folder.glob("*.svg")))
    )


def _task_lines(task: str, table: Table, quality: str | None) -> list[str]:
    found = marks(table.members)
    lines = [f"## {task}", "", *table_lines(table, found), *pair_lines(table)]
    return [*lines, NO_QUALITY, ""] if quality is None else lines


def _draw(folder: Path, task: str, table: Table, quality: str | None) -> Mapping[str, str]:
    """Draw the plots of a task; returns each as SVG, by name."""
    found = dict(plots(table, task, quality))
    if not found:
        return {}
    from xlm.eval.plots import draw  # imports matplotlib

    drawn: dict[str, str] = {}
    for name, plot in found.items():
        svg, _ = draw(plot, folder / f"{task}-{name}")
        drawn[svg.stem] = svg.read_text(encoding="utf-8")
    return drawn
