"""The output at the end of a job: metrics, files, and generations step by step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from xlm.core.config.console import console, say
from xlm.core.data import PreparedTask
from xlm.core.data.encode import RowCounts
from xlm.core.evaluation.predictions import Frame, TracedText
from xlm.core.saving.checkpoints import write_text_atomically

MOST_NOTES = 10
"""Number of notes of ``task.preprocess`` that are shown, most frequent first; the cached card has all."""


def print_start(job_type: str, folder: Path, lines: Mapping[str, str]) -> None:
    """Print what is about to run."""
    console.print(Text.assemble((f"xlm {job_type}", "bold"), f"  {folder}"))
    for name, value in lines.items():
        console.print(f"  {name:<12} {value}")


def print_prepared(prepared: PreparedTask) -> None:
    """Print rows, tokens, lengths and size of each split, and their folder."""
    if prepared.damage is not None:
        say(f"{prepared.folder} was damaged and is prepared again: {prepared.damage}")
    say(f"{'found' if prepared.was_cached else 'prepared'} in {prepared.folder}")
    table = Table()
    for column in ("split", "rows", "tokens", "length min / median / 95 % / max", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, card in prepared.cards.items():
        lengths = " / ".join(str(value) for value in card.length_quantiles.values())
        table.add_row(split, f"{card.rows:,}", f"{card.tokens:,}", lengths, f"{card.bytes / 1e6:.1f}")
    console.print(table, soft_wrap=False)
    for split, card in prepared.cards.items():
        if lost := list(_lost(card.counts)):
            say(f"  {split}: of {card.counts.read:,} rows read {', '.join(lost)}")


def print_streamed(total: RowCounts) -> None:
    """Print the counts of the rows that a training read from a stream, over all processes and epochs."""
    lost = ", ".join(_lost(total)) or "none dropped or truncated"
    say(f"\nstream: of {total.read:,} rows read {lost}")


def _lost(counts: RowCounts) -> Iterator[str]:
    """Describe the rows that the preparation dropped, changed or noted."""
    for number, what in (
        (counts.filtered, "filtered out"),
        (counts.refused, "refused by task.preprocess"),
        (counts.empty, "without a token, dropped"),
        (counts.dropped, "too long (task.length_limit), dropped"),
        (counts.cut, f"too long, truncated by {counts.cut_tokens:,} tokens in total (task.length_limit)"),
        (counts.repaired, "with invalid Unicode, kept with U+FFFD in its place"),
        (
            counts.unknown,
            f"with unknown tokens ({counts.unknown_tokens:,} in total), kept",
        ),
    ):
        if number:
            yield f"{number:,} {what}"
    for note, number in sorted(counts.notes.items(), key=lambda item: -item[1])[:MOST_NOTES]:
        yield f"{number:,} {note}"
    if len(counts.notes) > MOST_NOTES:
        yield f"and {len(counts.notes) - MOST_NOTES:,} more notes"


def print_traces(traces: Mapping[str, Sequence[TracedText]]) -> None:
    """Print generations step by step, with the changes of each step marked."""
    for loader, texts in traces.items():
        for number, traced in enumerate(texts, start=1):
            generation, frames = traced.generation, traced.frames
            console.print(Text(f"\n{loader}, generation {number}", style="bold"))
            if generation["prompt"]:
                say(f"  prompt     {generation['prompt']}")
            for frame in frames:
                console.print(_frame(frame))
            if not frames:
                console.print("  (nothing was generated)")
            if generation["reference"]:
                verdict = "as expected" if generation["ids"] == generation["reference_ids"] else "expected"
                say(f"  {verdict:<11}{generation['reference']}")


def write_traces(path: Path, traces: Mapping[str, Sequence[TracedText]]) -> dict[str, Path]:
    """Write what ``print_traces`` prints: a JSON line for each generation, with the tokens after each step.

    Returns:
        The file under its name in the list of files; empty if nothing was traced.
    """
    records = [
        {
            "loader": loader,
            "row": traced.row,
            **{name: traced.generation[name] for name in ("prompt", "text", "reference")},
            "steps": [
                {
                    "step": frame.step,
                    "tokens": frame.tokens,
                    "edited": sorted(frame.edited),
                    "edits": frame.edits,
                }
                for frame in traced.frames
            ],
        }
        for loader, texts in traces.items()
        for traced in texts
    ]
    if not records:
        return {}
    write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
    return {"traces": path}


def _frame(frame: Frame) -> Text:
    text = Text(f"  step {frame.step:>4}  ")
    for place, token in enumerate(frame.tokens):
        if place in frame.edited:
            text.append(f"[{token}]", style="bold green")
        else:
            text.append(f" {token} ")
    return text


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print all metrics of a job, one table per loader."""
    by_loader: dict[str, list[tuple[str, float]]] = {}
    for name, value in metrics.items():
        loader, _, metric = name.rpartition("/")
        by_loader.setdefault(loader, []).append((metric, value))
    for loader, values in by_loader.items():
        table = Table(title=loader, title_justify="left", show_header=False)
        for metric, value in values:
            table.add_row(metric, f"{value:.6g}")
        console.print(table, soft_wrap=False)


def print_files(files: Mapping[str, Path]) -> None:
    """Print the paths of the results."""
    console.print(Text("\nfiles", style="bold"))
    width = max([12, *map(len, files)])
    for what, path in files.items():
        if path.exists():
            console.print(f"  {what:<{width}} {path}")


def print_kept(checkpoints: Sequence[tuple[str, str]]) -> None:
    """Print each checkpoint and why it is kept."""
    console.print(Text("\ncheckpoints", style="bold"))
    for name, reason in checkpoints:
        console.print(f"  {name:<20} {reason}")


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics as JSON."""
    write_text_atomically(path, json.dumps(dict(metrics), indent=2) + "\n")
