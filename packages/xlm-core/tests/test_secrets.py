"""Secrets of the environment and of the command line stay out of every file of a run."""

from pathlib import Path

import pytest

from xlm.core.config.secrets import MASK, hide

from .conftest import Run

SECRET = "hf_abcdefghijklmnop"


def test_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = {
        "hub": {"token": "literal", "api_key": "${oc.env:KEY}", "tokenizer": "gpt2"},
        "urls": [f"https://user:{SECRET}@host"],
        "max_tokens": 5,
    }
    assert hide(config) == {
        "hub": {"token": MASK, "api_key": "${oc.env:KEY}", "tokenizer": "gpt2"},
        "urls": [f"https://user:{MASK}@host"],
        "max_tokens": 5,
    }


def test_no_file_of_a_run_holds_a_token(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    overrides = (
        "job_type=train",
        "debug=fast",
        "+optimizer.foreach=false",
        "+callbacks.note={_target_: toy_accidents.FailAt, batch: 999}",
        "+callbacks.note.token=${oc.env:HF_TOKEN}",
    )
    run_toy(*overrides)
    run_toy(*overrides)  # the record compares equal to itself
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert "${oc.env:HF_TOKEN}" in (tmp_path / "runs/toy/config.yaml").read_text()
