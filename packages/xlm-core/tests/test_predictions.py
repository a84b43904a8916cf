"""``predictions.jsonl``: one record per line, for any texts."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from xlm.core.evaluation.metrics import costs
from xlm.core.evaluation.predictions import PredictionWriter, decode, replay
from xlm.core.protocols import Example
from xlm.modules.records import FullTrace

from .conftest import Run
from .toy_family import ToyPrediction, ToyTokenizer

SIGNS = [
    "\u2028",
    "\u2029",
    "\x85",
    "\n",
    "\r",
    "\r\n",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1e",
    "\x00",
    "\ud800",
    "\udcff",
    '"',
    "\\",
]


class SignTokenizer(ToyTokenizer):
    vocab_size = len(SIGNS)

    def decode(self, ids: Sequence[int]) -> str:
        return "a" + "b".join(SIGNS[token] for token in ids) + "c"


def test_a_record_is_a_line_for_every_reader(tmp_path: Path) -> None:
    tokenizer = SignTokenizer()
    ids = torch.arange(len(SIGNS))[:, None]
    ones = torch.ones(len(SIGNS), dtype=torch.int64)
    prediction = ToyPrediction(ids, ones, ones, None)
    examples: list[Example] = [{"seed": 0, "prompt_ids": row, "target_ids": row} for row in ids]
    texts = [tokenizer.decode([token]) for token in range(len(SIGNS))]
    for rank in (0, 1):
        writer = PredictionWriter(tmp_path, num_traces=0, rank=rank, world_size=2)
        writer.open()
        spent = costs(prediction, 0.0)
        rows = range(rank, 2 * len(SIGNS), 2)
        generations = decode(prediction, examples, tokenizer)
        writer.write("test/\u2028", rows, prediction, generations, tokenizer, spent)
        writer.close()
    PredictionWriter(tmp_path, num_traces=0, world_size=2).merge()
    content = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in content.splitlines()]
    assert [record["row"] for record in records] == list(range(2 * len(SIGNS)))
    for record, text in zip(records, [text for text in texts for _ in range(2)], strict=True):
        assert record["loader"] == "test/\u2028"
        assert record["text"] == record["prompt"] == record["reference"] == text


def two_lines(tokenizer: ToyTokenizer, ids: Sequence[int]) -> str:
    return "one\u2028two\x85" * len(ids)


def test_a_run_keeps_its_results_whatever_its_texts_hold(
    run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_family

    monkeypatch.setattr(toy_family.ToyTokenizer, "decode", two_lines)
    results = run_toy("job_type=train", "trainer.max_steps=1", "trainer.log_every_n_steps=1")
    run = tmp_path / "runs" / "toy"
    assert json.loads((run / "metrics.json").read_text()) == results
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [record["reference"] for record in records] == [
        "one\u2028two\x85" * (i % 3 + 1) for i in range(20)
    ]


def full_trace(*edits: tuple[int, int, int]) -> FullTrace:
    """Operation, position and token of each edit of a row, one in a step."""
    operation, position, token = torch.tensor(edits).T
    nats = torch.zeros(len(edits), dtype=torch.float64)
    columns = (torch.arange(len(edits)) + 1, torch.zeros_like(token), operation, position, token)
    return FullTrace(*columns, log_prob=nats, entropy=nats, place_log_prob=nats[:1])


def test_edits_behind_the_end_of_a_text_are_not_shown() -> None:
    canvas = full_trace((0, 0, 5), (0, 1, 5), (0, 2, 5), (1, 2, 8), (1, 0, 7))
    assert [state.ids for state in replay(canvas, 0, length=2)] == [[5], [5, 5], [7, 5]]
    # Where tokens are deleted, an edit may be right of where the text ends later.
    edited = full_trace((0, 0, 5), (0, 1, 6), (0, 2, 7), (2, 0, 5), (1, 1, 8))
    assert [state.ids for state in replay(edited, 0, length=2)][-2:] == [[6, 7], [6, 8]]
