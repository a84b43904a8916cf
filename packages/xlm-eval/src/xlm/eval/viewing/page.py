"""One HTML file that replays generations, without network access."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlm.eval.viewing.renderers import renderer_of
from xlm.eval.viewing.traces import Recorded

TEMPLATE = Path(__file__).with_name("page.html")


def page_data(groups: Sequence[Sequence[Recorded]]) -> list[dict[str, Any]]:
    """What the page shows: for each prompt the generations of the runs, with their pictures."""
    return [
        {
            "task": group[0].task,
            "prompt": group[0].prompt,
            "reference": group[0].reference,
            "panels": [_panel(found) for found in group],
        }
        for group in groups
    ]


def _panel(found: Recorded) -> dict[str, Any]:
    draw = renderer_of(found.task)
    pictures = (
        []
        if draw is None
        else [draw(found.prompt, step["tokens"], set(step["edited"])) for step in found.steps]
    )
    return {
        "run": found.run,
        "loader": found.loader,
        "text": found.text,
        "steps": [_state(step) for step in found.steps],
        "pictures": pictures if any(picture is not None for picture in pictures) else [],
    }


def _state(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: step[name] for name in ("step", "tokens", "edits")}


def page(groups: Sequence[Sequence[Recorded]]) -> str:
    """The text of the file."""
    # Within a script element, only "</" and "<!" could end or change it.
    data = json.dumps(page_data(groups), ensure_ascii=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("DATA_OF_THE_PAGE", data)
