"""Order, seeds, preparation and reading: bit for bit the same for any number of workers and ranks."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import LoaderSettings, TaskSettings
from xlm.core.data import DataModule, PreparedTask, TaskParts, prepare
from xlm.core.data.order import Bucketing, EvaluationOrder, RowKey, TrainOrder


def train_order(**changes: Any) -> TrainOrder:
    arguments: dict[str, Any] = {
        "num_rows": 10,
        "batch_size": 4,
        "num_batches": 5,
        "seed": 1,
        "rank": 0,
        "world_size": 1,
    }
    return TrainOrder(**(arguments | changes))


def test_an_epoch_holds_every_row_once() -> None:
    keys = [key for batch in train_order() for key in batch]
    assert len(keys) == 20
    for epoch in (keys[:10], keys[10:]):
        assert sorted(key.row for key in epoch) == list(range(10))
    assert [key.row for key in keys[:10]] != [key.row for key in keys[10:]]
    assert [key.place for key in keys] == list(range(20))
    assert len({key.seed for key in keys}) == 20


def test_the_order_depends_on_the_seed() -> None:
    assert list(train_order(num_rows=1000)) != list(train_order(num_rows=1000, seed=2))
    assert list(train_order(num_rows=1000)) == list(train_order(num_rows=1000))


def test_ranks_share_the_batches_of_one_process() -> None:
    whole = list(train_order(batch_size=4))
    halves = [list(train_order(batch_size=2, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert Counter(batch) == Counter(left + right)


def test_a_later_start_continues_the_stream() -> None:
    order = train_order()
    order.start_batch = 3
    assert list(order) == list(train_order())[3:]


LENGTHS = np.random.default_rng(0).integers(1, 100, 50)


def bucketed_order(**changes: Any) -> TrainOrder:
    bucketing = Bucketing(LENGTHS, window=5)
    return train_order(num_rows=50, num_batches=23, bucketing=bucketing, **changes)


def test_bucketing_deals_the_rows_of_a_window_anew() -> None:
    plain, bucketed = list(train_order(num_rows=50, num_batches=23)), list(bucketed_order())
    assert [len(batch) for batch in bucketed] == [4] * 23
    for start in range(0, 20, 5):
        windows = [
            sorted((key.row, key.seed) for batch in batches[start : start + 5] for key in batch)
            for batches in (plain, bucketed)
        ]
        assert windows[0] == windows[1]
    assert [key.place for batch in bucketed for key in batch] == list(range(92))


def padding(batches: list[list[RowKey]]) -> int:
    lengths = [[int(LENGTHS[key.row]) for key in batch] for batch in batches]
    return sum(max(batch) - length for batch in lengths for length in batch)


def test_bucketing_pads_less_and_tells_nothing_of_the_length() -> None:
    assert padding(list(bucketed_order())) < padding(list(train_order(num_rows=50, num_batches=23))) / 2
    order = bucketed_order(batch_size=10)
    order.num_batches = 2000
    # Neither the place in the batch nor that of the batch in the window goes with the length.
    lengths = LENGTHS[[[key.row for key in batch] for batch in order]].reshape(400, 5, 10)
    spread = lengths.std() / np.sqrt(400)
    assert abs(lengths.mean(axis=(0, 1)) - lengths.mean()).max() < 4 * spread
    assert abs(lengths.mean(axis=(0, 2)) - lengths.mean()).max() < 4 * spread


def test_a_bucketed_order_continues_at_any_batch_and_for_any_ranks() -> None:
    whole = list(bucketed_order())
    for start in range(23):
        order = bucketed_order()
        order.start_batch = start
        assert list(order) == whole[start:]
    halves = [list(bucketed_order(batch_size=2, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert Counter(batch) == Counter(left + right)


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_every_row_once(world_size: int, batch_size: int) -> None:
    orders = [
        EvaluationOrder(num_rows=10, batch_size=batch_size, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    keys = [key for order in orders for batch in order for key in batch]
    assert sorted(key.row for key in keys) == list(range(10))
    alone = EvaluationOrder(num_rows=10, batch_size=3, seed=1, rank=0, world_size=1)
    assert set(keys) == {key for batch in alone for key in batch}
    assert all(len(list(order)) == len(order) for order in orders)


TOY = "toy_family."


@pytest.fixture
def toy_task() -> TaskSettings:
    return TaskSettings.model_validate(
        {
            "name": "toy",
            "source": {"_target_": TOY + "toy_rows"},
            "preprocess": {"_target_": TOY + "toy_preprocess"},
            "tokenizer": {"_target_": TOY + "ToyTokenizer"},
            "splits": {"train": "train", "val": "val", "test": "test"},
        }
    )


def prepare_toy(task: TaskSettings, cache_dir: Path, **changes: Any) -> PreparedTask:
    from toy_family import ToyTokenizer, toy_preprocess, toy_rows

    slots: dict[str, Any] = {"source": toy_rows, "preprocess": toy_preprocess, "tokenizer": ToyTokenizer()}
    return prepare(task, TaskParts(**(slots | changes)), cache_dir=cache_dir)


@pytest.fixture
def prepared(toy_task: TaskSettings, tmp_path: Path) -> PreparedTask:
    return prepare_toy(toy_task, tmp_path)


def test_prepared_rows_and_their_card(prepared: PreparedTask) -> None:
    assert not prepared.was_cached
    card = prepared.cards["train"]
    tokens = sum(1 + i % 3 + 1 for i in range(20))
    assert (card.rows, card.tokens) == (20, tokens)
    assert card.length_quantiles == {"0": 2, "0.5": 3, "0.95": 4, "1": 4}
    assert prepared.load("val")[2]["target_ids"] == [3, 3, 3]


def test_a_second_preparation_finds_the_first(
    toy_task: TaskSettings, prepared: PreparedTask, tmp_path: Path
) -> None:
    again = prepare_toy(toy_task, tmp_path)
    assert again.was_cached
    assert again.folder == prepared.folder


def test_an_interrupted_preparation_does_not_count(toy_task: TaskSettings, tmp_path: Path) -> None:
    from toy_family import toy_preprocess, toy_rows

    def breaks(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
        if row["number"] == 2005:
            raise RuntimeError("interrupted")
        return toy_preprocess(row, tokenizer)

    with pytest.raises(XLMError, match=r"task\.preprocess: RuntimeError: interrupted"):
        prepare_toy(toy_task, tmp_path, preprocess=breaks)
    folders = [path for path in (tmp_path / "toy").iterdir() if path.is_dir()]
    assert [path.suffix for path in folders] == [".unfinished"]
    done = prepare_toy(toy_task, tmp_path, preprocess=breaks, source=partial(toy_rows, num_rows=5))
    assert not done.was_cached
    assert done.cards["test"].rows == 5


def test_the_key_covers_the_settings(toy_task: TaskSettings, prepared: PreparedTask, tmp_path: Path) -> None:
    from toy_family import toy_rows

    other = toy_task.model_copy(update={"source": {**toy_task.source, "num_rows": 7}})
    changed = prepare_toy(other, tmp_path, source=partial(toy_rows, num_rows=7))
    assert changed.folder != prepared.folder


def datamodule(prepared: PreparedTask, num_workers: int, **changes: Any) -> DataModule:
    from toy_family import ToyCollator

    settings = LoaderSettings.model_validate(
        {"split": "train", "uses": ["loss"], "collator": {"_target_": TOY + "ToyCollator"}, "batch_size": 4,
         "num_workers": num_workers, "max_rows": None} | changes
    )  # fmt: skip
    return DataModule(
        prepared=prepared,
        loaders={"train": {"lm": settings}, "val": {}, "test": {}},
        collators={"train": {"lm": ToyCollator()}},
        seed=5,
        num_batches=12,
    )


def batches(loader: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"seeds": loaded.seeds, **loaded.batch} for loaded in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("bucketing", [False, True])
@pytest.mark.parametrize("num_workers", [1, 4])
def test_batches_do_not_depend_on_workers(prepared: PreparedTask, num_workers: int, bucketing: bool) -> None:
    settings = {"bucketing": 3} if bucketing else {}
    alone = batches(datamodule(prepared, 0, **settings).train_dataloader())
    others = batches(datamodule(prepared, num_workers, **settings).train_dataloader())
    assert len(alone) == len(others) == 12
    for left, right in zip(alone, others, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_loader_continues_bit_for_bit(prepared: PreparedTask) -> None:
    whole = batches(datamodule(prepared, 0).train_dataloader())
    resumed = datamodule(prepared, 0)
    resumed.load_state_dict({"batches_done": 5})
    for left, right in zip(whole[5:], batches(resumed.train_dataloader()), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_examples_are_tensors_of_their_own_length(prepared: PreparedTask) -> None:
    rows: Any = datamodule(prepared, 0).rows("train", "lm")
    example: Any = rows[RowKey(row=2, seed=77, place=9)]
    assert (example["seed"], example["place"]) == (77, 9)
    assert example["target_ids"].tolist() == [3, 3, 3]
    assert example["target_ids"].dtype == torch.int64
    several: list[Any] = rows.__getitems__([RowKey(i, 0, 0) for i in (4, 0, 4)])
    assert [len(row["target_ids"]) for row in several] == [2, 1, 2]


def test_examples_carry_the_columns_asked_for(prepared: PreparedTask) -> None:
    [example] = datamodule(prepared, 0, columns=["prompt_ids"]).first_examples("train", "lm", 1)
    assert set(example) == {"seed", "place", "prompt_ids"}
    with pytest.raises(
        XLMError, match=r"datamodule\.train\.lm\.columns: the task has no fixed, only prompt_ids"
    ):
        datamodule(prepared, 0, columns=["fixed"]).rows("train", "lm")


def test_unconditional_examples_are_seeds(prepared: PreparedTask) -> None:
    examples = datamodule(prepared, 0, columns=[], max_rows=50).first_examples("train", "lm", 99)
    assert len(examples) == 50  # more than the split has rows
    assert {tuple(example) for example in examples} == {("seed", "place")}


def test_rows_can_be_limited(prepared: PreparedTask) -> None:
    assert len(datamodule(prepared, 0, max_rows=6).rows("train", "lm")) == 6


def test_a_source_without_rows_is_reported(toy_task: TaskSettings, tmp_path: Path) -> None:
    from toy_family import toy_rows

    with pytest.raises(XLMError, match=r"task\.source: no rows for the split 'train'"):
        prepare_toy(toy_task, tmp_path, source=partial(toy_rows, num_rows=0))
