"""The page of recorded generations: its data, the replay in the terminal, and what is refused."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.core.command.job import read_tool
from xlm.core.config import console as console_module
from xlm.core.config.errors import XLMError
from xlm.eval.jobs import View
from xlm.eval.viewing import renderers
from xlm.eval.viewing.job import write_page
from xlm.eval.viewing.page import page, page_data
from xlm.eval.viewing.traces import read_traces

STEPS = [
    {
        "step": 1,
        "tokens": ["</script>", "[MASK]"],
        "edited": [0, 1],
        "edits": [
            {"kind": "insert", "position": 0, "token": "</script>", "log_prob": -0.5, "entropy": 1.25},
            {"kind": "insert", "position": 1, "token": "[MASK]"},
        ],
    },
    {
        "step": 2,
        "tokens": ["b"],
        "edited": [0],
        "edits": [
            {"kind": "delete", "position": 0, "token": "</script>"},
            {"kind": "write", "position": 0, "token": "b"},
        ],
    },
]


def write_run(
    folder: Path, task: str, prompts: Sequence[str], steps: Sequence[Mapping[str, Any]] = STEPS
) -> str:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"format_version": 3, "job_name": folder.name, "seed": 1, "task": {"name": task}})
    )
    records = [
        {"loader": "test/prediction", "prompt": prompt, "text": "b", "reference": "b", "steps": steps}
        for prompt in prompts
    ]
    (folder / "traces.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def data_of(text: str) -> Any:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_generations_on_one_prompt_are_side_by_side(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "words", ["x", "y", ""])
    second = write_run(tmp_path / "b", "words", ["y", "", "", "z"])
    shown = [
        (group["prompt"], [panel["run"] for panel in group["panels"]])
        for group in page_data(read_traces([first, second]))
    ]
    assert shown == [("x", ["a"]), ("y", ["a", "b"]), ("", ["a", "b"]), ("", ["b"]), ("z", ["b"])]


def test_the_page_holds_every_edit_and_needs_no_network(tmp_path: Path) -> None:
    text = page(read_traces([write_run(tmp_path / "a", "words", ["x"])]))
    [group] = data_of(text)
    [panel] = group["panels"]
    assert [step["edits"] for step in panel["steps"]] == [step["edits"] for step in STEPS]
    assert panel["steps"][-1]["tokens"] == ["b"]
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)\w+:""", text)
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2, "a token ended the data"


def test_records_without_edits_are_read(tmp_path: Path) -> None:
    old = [{"step": 1, "tokens": ["a", "b"], "edited": [1]}]
    [[found]] = read_traces([write_run(tmp_path / "a", "words", ["x"], old)])
    assert found.steps[0]["edits"] == [{"kind": "write", "position": 1, "token": "b"}]


def test_a_task_brings_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(prompt: str, tokens: Sequence[str], edited: object) -> str | None:
        return f"<svg>{prompt}{len(tokens)}</svg>"

    def offered(group: str) -> dict[str, list[object]]:
        return {"star": [], "star_tiny": []}

    def load(group: str, name: str) -> object:
        return draw if name == "star_tiny" else None

    monkeypatch.setattr(renderers, "offered", offered)
    monkeypatch.setattr(renderers, "load", load)
    runs = [
        write_run(tmp_path / name, task, ["x"]) for name, task in (("a", "star_tiny_hub"), ("b", "starling"))
    ]
    [star, other] = page_data(read_traces(runs))
    assert star["panels"][0]["pictures"] == ["<svg>x2</svg>", "<svg>x1</svg>"]
    assert other["panels"][0]["pictures"] == []


def test_the_job_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"), "words", ["x"])
    assert read_tool("view", View, ["job_type=view", "runs=[runs/a]"]).run() == 0
    [path] = Path("runs/view").glob("*/view.html")
    assert str(path) in capsys.readouterr().out
    assert data_of(path.read_text(encoding="utf-8"))[0]["panels"][0]["run"] == "a"


def test_a_page_is_written_beside_the_predictions(tmp_path: Path) -> None:
    folder = Path(write_run(tmp_path / "a", "words", ["x"]))
    path = write_page(folder)
    assert path == folder / "view.html"
    [group] = data_of(path.read_text(encoding="utf-8"))
    assert group["panels"][0]["steps"][0]["edits"][0]["entropy"] == 1.25


def test_the_terminal_shows_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", "words", ["x"])
    words = [f"runs=[{run}]", "terminal=true", "seconds=0"]
    assert not console_module.console.is_terminal
    assert read_tool("view", View, ["job_type=view", *words]).run() == 0
    shown = capsys.readouterr().out
    assert "[[MASK]]" in shown
    assert "[b]" in shown
    assert "-</script>" in shown
    assert "p 0.607, entropy 1.25 nats" in " ".join(shown.split())


def test_mistakes_are_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "words", ["x"])
    (tmp_path / "a" / "traces.jsonl").unlink()
    empty, nowhere = str(tmp_path / "a"), str(tmp_path / "b")
    mistakes = (([], "runs: missing"), ([empty], "has no traces.jsonl"), ([nowhere], "there is no folder"))
    for runs, message in mistakes:
        with pytest.raises(XLMError, match=message):
            read_traces(runs)
