"""Streaming: the same batches bit for bit for any number of workers and after a stop; nothing lost."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import datasets
import pytest
import torch

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import TaskSettings
from xlm.core.data import Stream, open_stream
from xlm.core.data.encode import RowCounts
from xlm.core.data.stream import EpochStart

from . import text_task

pytestmark = pytest.mark.usefixtures("datasets_cache")

TASK: TaskSettings = text_task.task(streaming=True)
MODES: dict[str, dict[str, Any]] = {
    "rows": {},
    "packed": {"packing": text_task.packing()},
    "bucketed": {"bucketing": 3},
}


def stream(
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 5,
    buffer_size: int = 10,
    parts: Any = None,
    task: TaskSettings = TASK,
    **changes: Any,
) -> Stream:
    about_the_run = {"num_batches": 30, "batches_done": 0, "epoch_starts": (EpochStart(0, 0),)}
    run = {name: changes.pop(name, value) for name, value in about_the_run.items()}
    settings = text_task.loader(**changes)
    parts = parts or text_task.parts()
    rows = open_stream(
        task, parts, max_rows=settings.max_rows, buffer_size=buffer_size, seed=seed, rank=rank,
        world_size=world_size,
    )  # fmt: skip
    return Stream(
        rows=rows, encoder=parts.encoder(task), settings=settings, collate=list, seed=seed, rank=rank,
        world_size=world_size, **run,
    )  # fmt: skip


def plain(batches: Any) -> list[Any]:
    """Batches as values that compare exactly."""
    return [
        [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in batch]
        for batch in batches
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_continues_bit_for_bit(mode: str) -> None:
    whole = stream(**MODES[mode])
    batches = plain(whole)
    assert len(batches) == 30
    assert len(whole.epoch_starts) > 2  # the 40 documents are read several times
    assert {len(batch) for batch in batches} == {4}
    for done in range(30):
        # An earlier run knew of the epochs that it had begun, perhaps of a later one that it had read ahead.
        starts = [start for start in whole.epoch_starts if start.example <= (done + 1) * 4]
        resumed = stream(**MODES[mode], batches_done=done, epoch_starts=starts)
        assert plain(islice(resumed, 2)) == batches[done : done + 2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("mode", MODES)
def test_batches_do_not_depend_on_workers(mode: str) -> None:
    alone = plain(stream(**MODES[mode], num_batches=11))
    for num_workers in (1, 4):
        assert plain(stream(**MODES[mode], num_batches=11, num_workers=num_workers)) == alone


def first_epoch(run: Stream) -> list[Any]:
    batches = plain(run)
    return [row for batch in batches for row in batch][: run.epoch_starts[1].example]


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own() -> None:
    texts = Counter(map(tuple, text_task.documents("train")))
    run = stream()
    rows = [row for batch in plain(run) for row in batch]
    epochs = [[tuple(row["target_ids"]) for row in rows[start : start + 40]] for start in (0, 40, 80)]
    assert all(Counter(epoch) == texts for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [start[:2] for start in run.epoch_starts[:3]] == [(0, 0), (1, 40), (2, 80)]
    assert len({row["seed"] for row in rows}) == len(rows)
    assert [row["place"] for row in rows] == list(range(len(rows)))


def test_the_order_follows_the_seed() -> None:
    assert plain(stream(seed=6)) != plain(stream())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows(world_size: int) -> None:
    runs = [stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    rows = [row for run in runs for row in first_epoch(run)]
    assert Counter(tuple(r["target_ids"]) for r in rows) == Counter(map(tuple, text_task.documents("train")))
    assert len({row["seed"] for row in rows}) == len({row["place"] for row in rows}) == 40
    assert sum(run.epoch_starts[1].counts.read for run in runs) == 40


def test_ranks_take_shards_where_there_are_enough() -> None:
    rows = datasets.Dataset.from_list([{"text": str(i)} for i in range(20)]).to_iterable_dataset(num_shards=4)

    def source(split: str) -> datasets.IterableDataset:
        return rows

    parts = text_task.parts(source=source)
    found = [
        {row["target_ids"][0] for row in first_epoch(stream(parts=parts, rank=rank, world_size=2))}
        for rank in (0, 1)
    ]
    assert found[0] | found[1] == set(range(20))
    assert not found[0] & found[1]


def test_a_packed_epoch_holds_every_token_once() -> None:
    [*rows] = first_epoch(stream(packing=text_task.packing(), buffer_size=1, num_batches=20))
    tokens = [token for row in rows for token in row["target_ids"]]
    assert tokens == text_task.joined(text_task.documents("train"))


def test_bucketing_sorts_inside_a_window_and_keeps_its_rows() -> None:
    loose, sorted_ = plain(stream(num_batches=9)), plain(stream(num_batches=9, bucketing=9))
    texts = [Counter(tuple(row["target_ids"]) for batch in run for row in batch) for run in (loose, sorted_)]
    assert texts[0] == texts[1]

    def padding(batches: list[Any]) -> int:
        lengths = [[len(row["target_ids"]) for row in batch] for batch in batches]
        return sum(max(batch) - length for batch in lengths for length in batch)

    assert padding(sorted_) < padding(loose) / 3


def refuses_most(row: Any, tokenizer: Any) -> dict[str, str] | None:
    return {"target_ids": row["text"]} if len(row["text"]) < 10 else None


def test_refused_rows_leave_no_gap_in_a_batch() -> None:
    run = stream(parts=text_task.parts(preprocess=refuses_most))
    assert {len(batch) for batch in plain(run)} == {4}


def count_alone(epochs: int) -> RowCounts:
    """The encoder's counts of the training rows, without a stream."""
    texts = [row["text"] for row in text_task.parts().source(split="train")]
    _, counts = counting_parts().encoder(COUNTED).encode({"text": texts})
    return sum([counts] * epochs, RowCounts())


COUNTED: TaskSettings = text_task.task(streaming=True, length_limit={"max_length": 12, "longer": "cut"})


def counting_parts() -> Any:
    return text_task.parts(preprocess=refuses_some, row_filter=no_one)


def no_one(row: Any) -> bool:
    return not row["text"].startswith("1")


def refuses_some(row: Any, tokenizer: Any) -> dict[str, str] | None:
    if row["text"].startswith("2"):
        return None
    fields = {"target_ids": row["text"]}
    return fields | {"note": "that begin with a three"} if row["text"].startswith("3") else fields


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_becomes_of_the_rows_is_counted(num_workers: int) -> None:
    run = stream(task=COUNTED, parts=counting_parts(), num_workers=num_workers, packing=text_task.packing())
    list(run)
    later = run.epoch_starts[2]
    assert later.counts == count_alone(epochs=2)
    assert (
        min(later.counts.filtered, later.counts.refused, later.counts.cut, *later.counts.notes.values()) > 0
    )
    resumed = stream(
        task=COUNTED, parts=counting_parts(), packing=text_task.packing(), batches_done=20,
        epoch_starts=run.epoch_starts[:2],
    )  # fmt: skip
    list(resumed)
    assert resumed.counts == run.counts


def test_a_stream_of_nothing_ends_in_a_message() -> None:
    nothing = text_task.parts(row_filter=text_task.nothing)
    with pytest.raises(XLMError, match="the stream of the training split has no usable row"):
        next(iter(stream(parts=nothing)))


def endless(split: str) -> Iterator[dict[str, str]]:
    number = 0
    while True:
        yield {"text": f"{number % 90} 1 2"}
        number += 1


def test_a_source_without_end_is_read_as_it_goes() -> None:
    run = stream(parts=text_task.parts(source=endless), num_batches=50)
    assert sum(len(batch) for batch in run) == 200


def test_the_number_of_rows_can_be_limited() -> None:
    rows = plain(stream(parts=text_task.parts(source=partial(endless)), max_rows=6, num_batches=6))
    assert Counter(row["target_ids"][0] for batch in rows for row in batch) == dict.fromkeys(range(6), 4)


def test_training_streams_resumes_and_evaluates(
    run_toy: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    streaming = (
        "job_type=train", "+task.streaming=true", "datamodule.shuffle_buffer=8", "lr_scheduler=constant",
        "lr_scheduler.warmup=0", "datamodule.train.lm.max_rows=9",
    )  # fmt: skip
    results = run_toy(*streaming, "job_name=whole")
    assert "none dropped or truncated" in capsys.readouterr().out
    assert results["test/prediction/exact_match"] == 1.0
    run_toy(*streaming, "job_name=parts", "trainer.max_steps=13", "test_after_training=false")
    run_toy(*streaming, "job_name=parts", "trainer.max_steps=20", "test_after_training=false")
    prepared = [path.name for path in (tmp_path / "cache").glob("toy/*/*") if path.is_dir()]
    assert sorted(prepared) == ["test", "val"]
    weights = [
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    ]
    assert torch.equal(weights[0]["model.bias"], weights[1]["model.bias"])
