"""``source=``: files of this machine in the place of a task's own source, in every layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from xlm.core.config.build import make
from xlm.core.config.errors import XLMError
from xlm.core.data import LocalCopy, read_rows
from xlm.core.data.sources import with_local_files

from .conftest import Run

pytestmark = pytest.mark.usefixtures("datasets_cache")

ROWS = {"train": ["1", "2", "3", "4"], "validation": ["5", "6"], "test": ["7"]}


def jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def csv(path: Path, texts: list[str]) -> None:
    path.write_text("text\n" + "".join(f"w{text}\n" for text in texts))


def txt(path: Path, texts: list[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in texts))


def parquet(path: Path, texts: list[str]) -> None:
    datasets.Dataset.from_dict({"text": texts}).to_parquet(str(path))


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "jsonl": jsonl,
    "csv": csv,
    "txt": txt,
    "parquet": parquet,
}


def texts(path: Path, split: str, arguments: dict[str, Any] | None = None, **keywords: Any) -> list[str]:
    rows: Any = LocalCopy(path, arguments or {}).read(split, **keywords)
    return [row["text"].removeprefix("w") for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_for_each_split(tmp_path: Path, kind: str) -> None:
    for split, rows in ROWS.items():
        WRITERS[kind](tmp_path / f"{split}.{kind}", rows)
    assert texts(tmp_path, "train") == ROWS["train"]
    assert texts(tmp_path, "validation", streaming=True) == ROWS["validation"]
    assert texts(tmp_path, "val") == ROWS["validation"]
    assert texts(tmp_path, "train[:2]+test") == ["1", "2", "7"]


def test_the_layout_of_a_hub_repository(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in (0, 1):
        half = ROWS["train"][2 * number : 2 * number + 2]
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", half)
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", ROWS["validation"])
    hub = {"path": "somebody/something", "name": "plain", "revision": "abc"}
    assert texts(tmp_path, "train[1:]", hub) == ["2", "3", "4"]
    assert texts(tmp_path, "validation", hub) == ROWS["validation"]


def test_folders_and_files_named_by_splits_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "extreme").mkdir()
    jsonl(tmp_path / "extreme" / "part1.jsonl", ["1"])
    jsonl(tmp_path / "extreme" / "part2.jsonl", ["2"])
    jsonl(tmp_path / "kaggle.jsonl", ["3"])
    assert texts(tmp_path, "extreme") == ["1", "2"]
    assert texts(tmp_path, "kaggle[:1]") == ["3"]


def test_the_data_files_of_the_task_are_looked_for_in_the_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "sudoku_a.jsonl", ["1"])
    jsonl(tmp_path / "sudoku_b.jsonl", ["2"])
    files = {"train": "sudoku_b.jsonl", "test": "sudoku_a.jsonl"}
    assert texts(tmp_path, "test", {"path": "somebody/something", "data_files": files}) == ["1"]
    remote = {"train": "https://nowhere.example/sudoku_b.jsonl"}
    assert texts(tmp_path, "train", {"path": "json", "data_files": remote}) == ["1", "2"]


def test_one_file_is_split_by_the_task(tmp_path: Path) -> None:
    jsonl(tmp_path / "all.jsonl", ROWS["train"])
    assert texts(tmp_path / "all.jsonl", "train[:50%]") == ["1", "2"]
    with pytest.raises(XLMError, match=r"there is no split 'validation', only train"):
        texts(tmp_path / "all.jsonl", "validation")


def test_how_files_are_read_is_kept_for_the_same_kind(tmp_path: Path) -> None:
    txt(tmp_path / "train.txt", ["a", "b"])
    by_document = {"path": "text", "sample_by": "document", "data_files": "elsewhere/*.txt"}
    assert texts(tmp_path, "train", by_document) == ["a\nb\n"]
    jsonl(tmp_path / "more.jsonl", ["1"])
    assert texts(tmp_path / "more.jsonl", "train", by_document) == ["1"]


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "there are no files"), ("model.bin", "is readable")]
)
def test_files_that_are_not_there_or_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(XLMError, match=message):
        LocalCopy(tmp_path / name, {})


def test_a_job_reads_the_local_copy(run_toy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for split, number in (("train", 4), ("val", 3), ("test", 2)):
        lines = [json.dumps({"number": i, "text": "5 5"}) for i in range(number)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    run_toy("job_type=prepare_data", f"source={folder}")
    assert "prepared in" in capsys.readouterr().out
    results = run_toy("job_type=train", f"source={folder}")
    assert results["test/prediction/exact_match"] == 1.0
    predictions = (tmp_path / "runs" / "toy" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference_ids"] for line in predictions] == [[5, 5], [5, 5]]
    with pytest.raises(XLMError, match=r"source=.*there are no files"):
        run_toy("job_type=prepare_data", "source=nowhere")


def test_a_source_with_an_argument_for_files_keeps_its_reader(tmp_path: Path) -> None:
    jsonl(tmp_path / "all.jsonl", ROWS["train"])
    node = {"_target_": "my.rows", "path": "somebody/something", "local": None}
    assert with_local_files(node, tmp_path) == {**node, "local": str(tmp_path)}
    replaced = with_local_files({"_target_": "my.rows", "path": "somebody/something"}, tmp_path)
    rows: Any = make(replaced, "task.source")(split="train[2:]")
    assert [row["text"] for row in rows] == ["3", "4"]
    with pytest.raises(XLMError, match="there are no files"):
        with_local_files(node, tmp_path / "nowhere")


def test_one_reader_of_the_hub_of_files_and_of_local_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    txt(tmp_path / "train.txt", ["a", "b"])
    how: dict[str, Any] = {"path": "text", "sample_by": "document", "split": "train"}
    places: list[dict[str, Any]] = [{"local": str(tmp_path)}, {"data_files": str(tmp_path / "*.txt")}]
    for place in places:
        rows: Any = read_rows(**how, **place)
        assert [row["text"] for row in rows] == ["a\nb\n"]
    asked = list[Any]()

    def load(*given: str, **more: object) -> None:
        asked.append((given, more))

    monkeypatch.setattr(datasets, "load_dataset", load)
    read_rows(path="somebody/something", name="plain", split="train")
    read_rows(path="text", data_files="hf://datasets/a/b.txt", split="train", streaming=True)
    assert asked == [
        (("somebody/something",), {"name": "plain", "split": "train", "streaming": False}),
        (("text",), {"data_files": "hf://datasets/a/b.txt", "split": "train", "streaming": True}),
    ]
