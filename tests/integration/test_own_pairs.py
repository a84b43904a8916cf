"""Your own prompts and completions, by the command line alone."""

import json
from pathlib import Path

import pytest

from xlm.core.config.errors import XLMError

from .running import composed, run_fast

SMALL = (
    "recipe=pairs",
    "model_type=mdlm",
    "model=rotary_tiny_mdlm",
    "model.trunk.d_model=16",
    "model.trunk.num_layers=1",
    "model.trunk.num_heads=1",
    "predictor.sampler.num_steps=4",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "task.tokenizer.vocab_size=270",
    "task.length_limit.max_length=16",
    "datamodule.train.lm.bucketing=null",
    "task.splits={train: 'train[:80%]', val: 'train[80%:90%]', test: 'train[90%:]'}",
)
COLUMNS = ("prompt_column=question", "target_column=answer")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """60 pairs; one without an answer, one whose answer is too long, one without a question."""
    rows: list[dict[str, object]] = [{"question": "qqqqqqqq", "answer": f"zzzz {i % 3}"} for i in range(60)]
    rows[3] |= {"answer": None}
    rows[4] |= {"answer": "".join(map(chr, range(35, 95)))}
    rows[5] |= {"question": None}
    file = tmp_path / "own[1].jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_pairs_are_prepared_trained_on_and_generated(pairs: Path, tmp_path: Path) -> None:
    results = run_fast(tmp_path, tmp_path / "cache", "train", None, *SMALL, *COLUMNS, f"source='{pairs}'")
    assert {"test/prediction/exact_match", "test/lm/nll_per_token"} <= set(results)
    [card] = (tmp_path / "cache" / "pairs").glob("*/train/card.json")
    counts = json.loads(card.read_text())["counts"]
    assert (counts["read"], counts["refused"], counts["dropped"]) == (48, 1, 1)
    records = [json.loads(line) for line in (tmp_path / "fast/predictions.jsonl").read_text().splitlines()]
    assert {record["prompt"] for record in records} == {"qqqqqqqq"}
    assert records[0]["reference"] == "zzzz 0"
    [tokenizer] = (tmp_path / "cache" / "tokenizers").glob("*/tokenizer.json")
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    assert {"qqqqqqqq", "zzzz"} <= set(vocabulary)  # trained on both columns


def test_a_column_that_is_not_there_is_named(pairs: Path, tmp_path: Path) -> None:
    columns = ("prompt_column=question", "target_column=reply")
    with pytest.raises(XLMError, match="no column 'reply'; they have question, answer"):
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *SMALL, *columns, f"source='{pairs}'")


@pytest.mark.parametrize("recipe", ["pairs", "text"])
def test_data_that_are_not_named_are_asked_for(recipe: str) -> None:
    with pytest.raises(XLMError, match=r"source: missing\. Set the data: source=FILE"):
        composed(
            None,
            "job_type=train",
            "job_name=x",
            f"recipe={recipe}",
            "model_type=mdlm",
            "model=rotary_tiny_mdlm",
        )


def test_the_recipe_of_texts_names_its_column() -> None:
    chosen = (
        "recipe=text",
        "model_type=mdlm",
        "model=rotary_tiny_mdlm",
        "source=my.jsonl",
        "text_column=body",
    )
    config = composed(None, "job_type=train", "job_name=x", *chosen)
    assert config.task.preprocess["column"] == config.task.tokenizer["column"] == "body"
    assert config.source == "my.jsonl"
