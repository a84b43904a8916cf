"""The replay of generations in the terminal."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from xlm.core.config.console import console
from xlm.eval.viewing.traces import Recorded

STYLES = {
    "insert": "bold green",
    "write": "bold blue underline",
    "remask": "yellow italic",
    "delete": "red strike",
}


def play(groups: Sequence[Sequence[Recorded]], *, seconds: float) -> None:
    """Play each prompt's generations side by side; without a terminal, print all steps.

    Args:
        groups: The generations.
        seconds: Time of a step.
    """
    for number, group in enumerate(groups, start=1):
        console.print(Text(f"\n{number} of {len(groups)}  {group[0].prompt}", style="bold"))
        if not console.is_terminal:
            for state in range(_last(group) + 1):
                console.print(_side_by_side(group, state))
            continue
        with Live(console=console, auto_refresh=False) as live:
            for state in range(_last(group) + 1):
                live.update(_side_by_side(group, state), refresh=True)
                time.sleep(seconds)


def _last(group: Sequence[Recorded]) -> int:
    return max(max(len(found.steps) for found in group) - 1, 0)


def _side_by_side(group: Sequence[Recorded], state: int) -> Table:
    table = Table(expand=True)
    for found in group:
        table.add_column(found.run, ratio=1)
    table.add_row(*(_state(found, state) for found in group))
    return table


def _state(found: Recorded, state: int) -> Text:
    if not found.steps:
        return Text("(nothing was generated)")
    step = found.steps[min(state, len(found.steps) - 1)]
    text = Text(f"step {step['step']}\n", style="dim")
    for part in _tokens(step):
        text.append_text(part)
    for edit in step["edits"]:
        if "log_prob" in edit:
            text.append(
                f"\n{edit['kind']} {edit['token']!r} at {edit['position']}: {chances(edit)}", style="not dim"
            )
    return text


def chances(edit: Mapping[str, Any]) -> str:
    """The probability of an edit, with the entropy of what it was drawn from if that is recorded."""
    found = f"p {math.exp(edit['log_prob']):.3g}"
    return f"{found}, entropy {edit['entropy']:.3g} nats" if "entropy" in edit else found


def _tokens(step: Mapping[str, Any]) -> Iterator[Text]:
    edits: Sequence[Mapping[str, Any]] = step["edits"]
    kind = edits[-1]["kind"] if edits else "write"
    of_position = {edit["position"]: edit["kind"] for edit in edits if edit["kind"] in ("write", "remask")}
    for place, token in enumerate(step["tokens"]):
        if place not in step["edited"]:
            yield Text(f" {token} ", style="not dim")
            continue
        own = of_position.get(place, "insert" if kind == "delete" else kind)
        yield Text(f"[{token}]", style=f"not dim {STYLES[own]}")
    for edit in edits:
        if edit["kind"] == "delete":
            yield Text(f" -{edit['token']} ", style=f"not dim {STYLES['delete']}")
