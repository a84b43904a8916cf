"""A comparison as Markdown and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlm.eval.finished_runs import Run
from xlm.eval.pairs import Marks, differences
from xlm.eval.tables import Table

BOUNDS = "An upper bound below an exact value is better; one above it may still be better."
LENGTHS = (
    "To make likelihoods with and without the length comparable, model the length in all of them: use rows "
    "that are not packed, and for masked families a fixed width (collator.target_length)."
)
LEGEND = (
    "Mean ± half of Student's 95 % interval over seeds. A single run has the 95 % interval over rows of its "
    "card, or none.",
    "Likelihoods of different kinds, and different losses, have separate rows.",
)
PAIRED = (
    "Paired 95 % intervals over rows, with one trained network on each side; * marks those without 0, of "
    "which one in twenty occurs between equal runs."
)


def table_lines(table: Table, marks: Marks) -> Iterator[str]:
    """Differences between the settings, then their metrics; † marks rows that are not comparable."""
    settings = list(table.differences)
    yield f"| | {' | '.join(map(_cell, settings))} |"
    yield "|---" * (len(settings) + 1) + "|"
    for key in table.differences[settings[0]]:
        yield f"| {key} | {' | '.join(_cell(table.differences[name][key]) for name in settings)} |"
    for metric, by_setting in sorted(table.metrics.items()):
        cells = [str(by_setting[name]) if name in by_setting else "–" for name in settings]
        mark = " †" if len(by_setting) > 1 and marks.has(metric) else ""
        yield f"| {_cell(metric)}{mark} | {' | '.join(cells)} |"
    yield ""
    for note in marks.notes:
        yield f"- † {note}" if any(map(marks.has, table.metrics)) else f"- {note}"
    if marks.notes:
        yield ""
    yield from advice(table)


def pair_lines(table: Table) -> Iterator[str]:
    """Differences of each run from the first one, on the same rows."""
    runs = [
        (_run_label(label, run, members), run) for label, members in table.members.items() for run in members
    ]
    (first_label, first), *others = runs
    found = {label: differences(first, run) for label, run in others}
    metrics = dict.fromkeys(name for by_metric, _ in found.values() for name in by_metric)
    shown = [label for label, (by_metric, _) in found.items() if by_metric]
    if shown:
        yield f"### Differences from {first_label}"
        yield ""
        yield f"| | {' | '.join(map(_cell, shown))} |"
        yield "|---" * (len(shown) + 1) + "|"
        for metric in metrics:
            cells = [str(found[label][0][metric]) if metric in found[label][0] else "–" for label in shown]
            yield f"| {_cell(metric)} | {' | '.join(cells)} |"
        yield ""
        yield PAIRED
        yield ""
    reasons: dict[str, list[str]] = {}
    for label, (_, refused) in found.items():
        for reason in refused:
            reasons.setdefault(reason, []).append(label)
    for reason, labels in reasons.items():
        yield f"- no paired interval of {', '.join(labels)}: {reason}"
    if reasons:
        yield ""


def _run_label(label: str, run: Run, members: Sequence[Run]) -> str:
    return label if len(members) == 1 else f"{label}, seed {run.seed}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def advice(table: Table) -> list[str]:
    """Notes for a table with likelihoods of different kinds."""
    kinds = {metric for metric in table.metrics if metric.partition(" (")[0].rpartition("/")[2] == "nll"}
    lines = [BOUNDS] if len({"(exact" in kind for kind in kinds}) > 1 else []
    lines += [LENGTHS] if len({"length given" in kind for kind in kinds}) > 1 else []
    return [*lines, ""] if lines else []


def command_lines(runs: Sequence[Run], command: str) -> Iterator[str]:
    """The commands that repeat the runs, as far as their cards have them, and the comparison."""
    commands = dict.fromkeys(str(run.card["command"]) for run in runs if run.card and run.card["command"])
    yield "```bash"
    yield from commands
    yield command
    yield "```"
    if without := [run for run in runs if not (run.card and run.card["command"])]:
        yield ""
        configs = ", ".join(f"`{run.folder / 'config.yaml'}`" for run in without)
        yield f"Without a recorded command; their configs are {configs}."
    yield ""
    for run in runs:
        yield f"- `{run.folder}`: seed {run.seed}{_origin(run)}"


def _origin(run: Run) -> str:
    """Checkpoint and commit of a run with a card."""
    if run.card is None:
        return ""
    weights, git = run.card["weights"], run.card["git"]["xlm"]
    commit = f", commit {git['commit'][:10]}{' with changes' if git.get('changed') else ''}" if git else ""
    return f", {weights['kind']} weights of step {weights['step']}{commit}"


def as_json(tables: Mapping[str, Table]) -> Mapping[str, Any]:
    """Tables, marks and differences."""
    return {
        task: {
            "settings": table.differences,
            **{
                metric: {
                    name: {
                        "mean": found.mean,
                        "half_width_95": found.half_width,
                        "over_rows_95": found.over_rows,
                        "values": found.values,
                    }
                    for name, found in by_setting.items()
                }
                for metric, by_setting in table.metrics.items()
            },
        }
        for task, table in tables.items()
    }
