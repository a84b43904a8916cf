"""Packing: every token once, separators after documents, documents kept apart."""

from pathlib import Path
from typing import Any

import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import PackingSettings, RunSettings, validate
from xlm.core.data import DataModule
from xlm.core.data.arrow import make_lists
from xlm.core.data.packing import Packer

from . import text_task


def datamodule(tmp_path: Path, loader: dict[str, Any], **changes: Any) -> DataModule:
    train = text_task.loader(**{"packing": text_task.packing()} | loader)
    val = train.model_copy(update={"split": "val"})
    return DataModule(
        prepared=text_task.prepared(tmp_path, **changes),
        loaders={"train": {"lm": train}, "val": {"lm": val}, "test": {}},
        collators={"train": {"lm": list}, "val": {"lm": list}},
        seed=3,
        num_batches=9,
    )


def blocks(module: DataModule, stage: Any = "train") -> list[dict[str, Any]]:
    return [dict(example) for example in module.first_examples(stage, "lm", 10**6)]


def segments(tokens: list[int], block_length: int) -> list[list[int]]:
    """Numbers of the documents in each block, the plain way."""
    found: list[list[int]] = []
    for start in range(0, len(tokens), block_length):
        document, numbers = 0, list[int]()
        for token in tokens[start : start + block_length]:
            numbers.append(document)
            document += token == text_task.SEPARATOR
        found.append(numbers)
    return found


def test_blocks_joined_are_the_documents_joined(tmp_path: Path) -> None:
    tokens = text_task.joined(text_task.documents("train"))
    found = blocks(datamodule(tmp_path, {}))
    assert [token for block in found for token in block["target_ids"].tolist()] == tokens
    assert [len(block["target_ids"]) for block in found[:-1]] == [16] * (len(found) - 1)
    assert [block["segment_ids"].tolist() for block in found] == segments(tokens, 16)
    assert {block["target_ids"].dtype for block in found} == {torch.int64}


def one_long_document(split: str) -> Any:
    """Longer than many batches of rows, with short ones and an end on a block's border."""
    yield {"text": " ".join(["7"] * 15)}
    yield {"text": " ".join(str(i % 90) for i in range(100_003))}
    yield {"text": "1 2"}


def test_a_document_of_many_blocks(tmp_path: Path) -> None:
    tokens = text_task.joined([[7] * 15, [i % 90 for i in range(100_003)], [1, 2]])
    found = blocks(datamodule(tmp_path, {}, source=one_long_document))
    assert [token for block in found for token in block["target_ids"].tolist()] == tokens
    assert [block["segment_ids"].tolist() for block in found] == segments(tokens, 16)


def test_documents_are_distinguished_only_on_request(tmp_path: Path) -> None:
    module = datamodule(tmp_path, {"packing": text_task.packing(keep_apart=False)})
    assert set(blocks(module)[0]) == {"seed", "place", "target_ids"}


def test_the_number_of_blocks_can_be_limited(tmp_path: Path) -> None:
    assert len(blocks(datamodule(tmp_path, {"max_rows": 3}))) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_packed_evaluation_reads_every_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, batch_size: int
) -> None:
    pieces: dict[int, list[int]] = {}
    for rank in range(world_size):
        module = datamodule(tmp_path, {"batch_size": batch_size})
        monkeypatch.setattr(DataModule, "_rank", rank)
        monkeypatch.setattr(DataModule, "_world_size", world_size)
        for batch in module.val_dataloader()[0]:
            for example in batch.batch:
                assert example["place"] not in pieces
                pieces[example["place"]] = example["target_ids"].tolist()
    tokens = [token for place in sorted(pieces) for token in pieces[place]]
    assert tokens == text_task.joined(text_task.documents("val"))


@pytest.mark.parametrize("group", [1, 7, 100])
def test_a_stream_is_packed_like_prepared_rows(tmp_path: Path, group: int) -> None:
    packer = Packer(PackingSettings(block_length=16, separator_id=text_task.SEPARATOR, keep_apart=True))
    texts = text_task.documents("train")
    found = list[Any]()
    for start in range(0, len(texts), group):
        some = texts[start : start + group]
        ids = torch.tensor([token for text in some for token in text]).numpy()
        lengths = torch.tensor([len(text) for text in some]).numpy()
        found += packer.add(make_lists(lengths, ids))
    found += packer.rest()
    for block, example in zip(found, blocks(datamodule(tmp_path, {})), strict=True):
        assert block.ids.tolist() == example["target_ids"].tolist()
        assert block.segments.tolist() == example["segment_ids"].tolist()


def test_rows_with_a_prompt_are_not_packed(tmp_path: Path) -> None:
    def with_prompt(row: Any, tokenizer: Any) -> dict[str, list[int]]:
        return {"prompt_ids": [1], "target_ids": [2]}

    with pytest.raises(XLMError, match=r"train\.lm\.packing: the task has prompt_ids, target_ids"):
        blocks(datamodule(tmp_path, {}, preprocess=with_prompt))


def test_a_separator_that_the_tokenizer_lacks_is_reported(run_toy: Any) -> None:
    with pytest.raises(
        XLMError, match=r"datamodule\.train\.lm\.packing: the tokenizer has no such separator token"
    ):
        run_toy(
            "job_type=train", "+task.packing={block_length: 8, separator_id: '${vocab.eos_id}'}",
            "task.preprocess._target_=toy_family.toy_preprocess",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{bucketing: 4, packing: {block_length: 8, separator_id: 1}}", "exclude each other"),
        ("{columns: []}", "max_rows must be the number"),
        ("{columns: [prompt_ids], packing: {block_length: 8, separator_id: 1}}", "target_ids alone"),
        ("{packing: {block_length: 1, separator_id: 1}}", "greater than or equal to 2"),
    ],
)
def test_impossible_combinations_are_refused(compose_toy: Any, settings: str, message: str) -> None:
    from omegaconf import OmegaConf

    config = compose_toy("job_type=train", f"datamodule.train.lm={settings}")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    with pytest.raises(XLMError, match=rf"(?s)datamodule\.train\.lm.*{message}"):
        validate(plain)


def test_bucketing_is_for_training_only(compose_toy: Any) -> None:
    from omegaconf import OmegaConf

    config = compose_toy("job_type=train", "+datamodule.val.lm.bucketing=4")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    with pytest.raises(XLMError, match=r"val: bucketing is for the training loader only"):
        validate(plain)
    plain["datamodule"]["val"]["lm"]["bucketing"] = None
    assert isinstance(validate(plain), RunSettings)
