"""Your own text: files, their hard cases, and a choice of tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from xlm.core.config.errors import XLMError
from xlm.tasks.text import play_rows

from .published import Published
from .running import composed, run_fast

SMALL = (
    "recipe=text",
    "model_type=mdlm",
    "model=rotary_tiny_mdlm",
    "model.trunk.d_model=16",
    "model.trunk.num_layers=1",
    "model.trunk.num_heads=1",
    "predictor.sampler.num_steps=4",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "task.tokenizer.vocab_size=320",
    "task.packing.block_length=16",
    "task.splits={train: 'train[:80%]', val: 'train[80%:90%]', test: 'train[90%:]'}",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """20 files of real text, one of them empty, one of white space, one of 3 MB."""
    folder = tmp_path / "texts"
    folder.mkdir()
    speeches = [row["text"] for row in play_rows("test")]
    for file in range(20):
        (folder / f"{file:02}.txt").write_text("\n\n".join(speeches[file : file + 5]))
    (folder / "03.txt").write_text("")
    (folder / "04.txt").write_text("\n \n")
    (folder / "05.txt").write_text("\n\n".join(speeches * 12))
    return folder


def cards(cache: Path) -> dict[str, Any]:
    found = {path.parent.name: json.loads(path.read_text()) for path in cache.glob("text/*/*/card.json")}
    assert set(found) == {"train", "val", "test"}
    return found


def test_files_are_prepared_and_trained_on(texts: Path, tmp_path: Path) -> None:
    files = f"task.source.data_files={texts}/*.txt"
    run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *SMALL, files)
    train = cards(tmp_path / "cache")["train"]
    assert (train["rows"], train["counts"]["read"], train["counts"]["refused"]) == (14, 16, 2)
    assert (texts / "05.txt").stat().st_size > 2.9e6
    assert train["length_quantiles"]["1"] > 1e6  # every token of it
    assert train["counts"]["cut"] == train["counts"]["dropped"] == train["counts"]["repaired"] == 0
    results = run_fast(tmp_path, tmp_path / "cache", "train", None, *SMALL, files)
    assert 0 < results["test/prediction/tokens"] <= 16


def test_bytes_that_are_no_utf8_are_refused_or_replaced_and_counted(texts: Path, tmp_path: Path) -> None:
    (texts / "07.txt").write_bytes(b"na\xefve caf\xe9 in another encoding")
    files = f"task.source.data_files={texts}/*.txt"
    with pytest.raises(XLMError, match=r"^task\.tokenizer: .*07\.txt, line 1: .*0xef.*=replace"):
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *SMALL, files)
    replaced = "task.source.encoding_errors=replace"
    run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *SMALL, files, replaced)
    assert cards(tmp_path / "cache")["train"]["counts"]["repaired"] == 1


def test_a_pattern_without_text_is_one_error(tmp_path: Path) -> None:
    def prepare() -> None:
        files = f"task.source.data_files={tmp_path}/*.txt"
        run_fast(tmp_path, tmp_path / "cache", "prepare_data", None, *SMALL, files)

    with pytest.raises(
        XLMError, match=r"task\.tokenizer: task\.source\.data_files: no file matches .*\*\.txt"
    ):
        prepare()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(XLMError, match=r"(?s)task\.tokenizer.*the rows of its split are empty"):
        prepare()


def test_other_tokens_and_another_metric_are_a_choice_each(published: Published) -> None:
    config = composed(
        None,
        "job_type=train",
        "job_name=x",
        "recipe=text",
        "model_type=flexmdm",
        "model=dit_small_flexmdm",
        "task.source={path: json, data_files: my.jsonl}",
        "text_tokenizer@task.tokenizer=gpt2",
        "+metric@task.metrics.perplexity=gpt2_large_perplexity",
    )
    assert config.task.tokenizer.path == "openai-community/gpt2"
    assert config.task.metrics.perplexity.path == "openai-community/gpt2-large"
    assert set(config.task.metrics) == {"text", "perplexity"}
