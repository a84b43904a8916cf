"""A text continued from a step of its record: the same without an edit, changed by one, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from xlm.core.config.errors import XLMError

from .conftest import Run

EDITABLE = "predictor._target_=toy_family.EditableToy"


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(run: Path) -> Path:
    return max((run / "generate").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


@pytest.fixture
def trained(run_toy: Run, tmp_path: Path) -> Path:
    run_toy("job_type=train", "trainer.max_steps=10", "show_generations=3")
    return tmp_path / "runs" / "toy"


def test_a_text_is_repeated_or_edited(run_toy: Run, trained: Path) -> None:
    recorded = records(trained / "traces.jsonl")
    number = next(i for i, record in enumerate(recorded, start=1) if len(record["steps"]) == 3)
    original = recorded[number - 1]
    for step in (1, 2, 3):
        run_toy("job_type=generate", f"++fork={trained}:{number}@{step}")
        folder = newest(trained)
        assert records(folder / "traces.jsonl") == [original]
        [row] = records(folder / "predictions.jsonl")
        assert (row["row"], row["text"]) == (original["row"], original["text"])
        shutil.rmtree(folder)
    run_toy(
        "job_type=generate", f"++fork={trained}:{number}@2", "++fork_edit={position: 1, token: 4}", EDITABLE
    )
    [row] = records(newest(trained) / "predictions.jsonl")
    before = original["text"].split()
    assert row["text"].split() == [before[0], "4", before[2]]


def test_what_cannot_be_continued_is_refused(run_toy: Run, trained: Path) -> None:
    edit = "++fork_edit={position: 0, token: 4}"
    for words, message in (
        ([f"++fork={trained}"], "has no step"),
        ([f"++fork={trained}:x@1"], "'x' is no number of a text"),
        ([f"++fork={trained}:9@1"], "has 3 texts, numbered from 1, and no text 9"),
        ([f"++fork={trained}@7"], r"has no edit in step 7, but in 1"),
        ([f"++fork={trained}/csv@1"], "there is no .*csv/traces.jsonl"),
        ([edit], r"fork_edit: which text\? Set fork="),
        ([f"++fork={trained}@1", edit], "fork_edit: .*ToyPredictor has no method fork"),
        (
            [f"++fork={trained}@1", "++fork_edit={position: 0, token: 4 4}"],
            "fork_edit.token: '4 4' has 2 tokens",
        ),
        ([f"++fork={trained}@1", "++fork_edit={position: -1, token: x}"], "fork_edit.position"),
        (
            [f"++fork={trained}@1", "++fork_edit={position: 0, token: 1}", EDITABLE],
            "EditableToy: token 1 is reserved",
        ),
    ):
        with pytest.raises(XLMError, match=message):
            run_toy("job_type=generate", *words)


def test_a_record_that_the_run_does_not_repeat_is_refused(run_toy: Run, trained: Path) -> None:
    path = trained / "traces.jsonl"
    first = records(path)[0]
    changed = json.loads(json.dumps(first))
    changed["steps"][0]["edits"][0]["id"] += 1
    missing = {name: value for name, value in first.items() if name != "row"}
    beyond = {**first, "row": 10**6}
    path.write_text("".join(json.dumps(record) + "\n" for record in (changed, missing, beyond)))
    for number, message in (
        (1, "is not repeated: step 1 differs"),
        (2, "is of an earlier version"),
        (3, "row 1000000, which test/prediction lacks"),
    ):
        with pytest.raises(XLMError, match=message):
            run_toy("job_type=generate", f"++fork={trained}:{number}@1")
