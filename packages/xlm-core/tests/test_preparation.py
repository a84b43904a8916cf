"""Preparation of real files: what is counted, what the cache covers, one process or several, no network."""

import importlib
import json
import multiprocessing
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from xlm.core.config.errors import XLMError
from xlm.core.config.schema import LengthLimitSettings
from xlm.core.data import PreparedTask, encode, prepare
from xlm.core.data.cache_key import cache_key, tokenizer_fingerprint
from xlm.core.data.encode import RowCounts, RowEncoder
from xlm.core.evaluation import report

from . import text_task

pytestmark = pytest.mark.usefixtures("datasets_cache")

HARD_TEXTS = ["1 2 3", "", "   ", "4 " * 12, "odd \ufffd", "lone \ud800", "5 6", "no"]
NUMBERS = "0123456789 "


class LetterTokenizer(text_task.WordTokenizer):
    """Takes any text: a token for each word, but no lone surrogates, as those of `tokenizers`."""

    def encode(self, text: str) -> list[int]:
        text.encode()
        return [int(word) if word.isdigit() else 98 for word in text.split()]


def refuse_no(row: Any, tokenizer: Any) -> dict[str, str] | None:
    return None if row["text"] == "no" else {"target_ids": row["text"]}


def not_five(row: Any) -> bool:
    return not row["text"].startswith("5")


def encoder(longer: Any = "cut") -> RowEncoder:
    return RowEncoder(
        preprocess=refuse_no,
        tokenizer=LetterTokenizer(),
        row_filter=not_five,
        length_limit=LengthLimitSettings(max_length=10, longer=longer),
    )


def test_every_row_that_is_lost_or_changed_is_counted() -> None:
    table, counts = encoder().encode({"text": HARD_TEXTS})
    ids = datasets.Dataset(table)["target_ids"][:]  # pyright: ignore[reportArgumentType]  # Arrow has no types
    assert ids == [[1, 2, 3], [4] * 10, [98, 98], [98, 98]]
    assert asdict(counts) == {
        "read": 8, "filtered": 1, "refused": 1, "empty": 2, "dropped": 0, "cut": 1, "cut_tokens": 2,
        "repaired": 2, "unknown": 0, "unknown_tokens": 0, "notes": {},
    }  # fmt: skip


class UnknowingTokenizer(LetterTokenizer):
    unk_id = 98


@pytest.mark.parametrize("as_text", [True, False])
def test_what_the_tokenizer_does_not_know_is_counted(
    as_text: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = UnknowingTokenizer()

    def preprocess(row: Any, tokenizer: Any) -> dict[str, Any]:
        prompt, target = row["text"].split("|")
        encode = str if as_text else tokenizer.encode
        return {"prompt_ids": encode(prompt), "target_ids": encode(target)}

    limit = LengthLimitSettings(max_length=3, longer="cut")
    counting = RowEncoder(preprocess=preprocess, tokenizer=tokenizer, length_limit=limit)
    # Of the four rows one is known, one is unknown in both columns, one only behind the cut, one is empty.
    _, counts = counting.encode({"text": ["1|2 3", "x y|4 z", "1|2 3 4 x", "|"]})
    assert (counts.unknown, counts.unknown_tokens, counts.left) == (1, 3, 3)
    report.print_streamed(counts)
    assert "1 with unknown tokens (3 in total), kept" in capsys.readouterr().out


def test_notes_are_counted_and_are_no_columns() -> None:
    def preprocess(row: Any, tokenizer: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {"target_ids": row["text"]}
        return fields | {"note": "of one letter"} if len(set(row["text"].split())) == 1 else fields

    limit = LengthLimitSettings(max_length=3, longer="drop")
    noting = RowEncoder(preprocess=preprocess, tokenizer=LetterTokenizer(), length_limit=limit)
    table, counts = noting.encode({"text": ["a", "a b", "b", "c c c c"]})
    assert table.column_names == ["target_ids"]
    assert (counts.notes, counts.dropped, counts.left) == ({"of one letter": 2}, 1, 3)
    both = counts + RowCounts(read=1, cut=1, notes={"other": 1, "of one letter": 3})
    assert both == RowCounts(read=5, dropped=1, cut=1, notes={"of one letter": 5, "other": 1})


@pytest.mark.parametrize("kind", ["data set", "generator"])
def test_long_texts_are_tokenised_a_few_at_a_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["1 2 " * length for length in (1, 3, 0, 40, 7, 2, 2, 30, 30, 1)]
    calls: list[int] = []

    class Recorder(LetterTokenizer):
        def encode_batch(self, texts: Any) -> list[list[int]]:
            calls.append(sum(map(len, texts)) if len(texts) > 1 else 0)
            return [self.encode(text) for text in texts]

    def rows(split: str) -> Any:
        found = [{"text": text} for text in texts]
        return datasets.Dataset.from_list(found) if kind == "data set" else iter(found)

    monkeypatch.setattr(encode, "MOST_CHARACTERS", 60)
    parts = text_task.parts(source=rows, tokenizer=Recorder())
    prepared = prepare(text_task.task(splits={"train": "train"}), parts, cache_dir=tmp_path)
    assert prepared.load("train")["target_ids"][:] == [[1, 2] * (len(t) // 4) for t in texts if t]
    assert max(calls) <= 60
    assert len(calls) < 10
    assert prepared.cards["train"].counts == RowCounts(read=10, empty=1)


def test_long_rows_can_be_dropped_instead() -> None:
    table, counts = encoder("drop").encode({"text": HARD_TEXTS})
    assert len(table) == 3
    assert (counts.dropped, counts.cut, counts.cut_tokens) == (1, 0, 0)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ({"ids": [1]}, "returns the columns ids; an example has prompt_ids, target_ids, fixed"),
        ({"target_ids": [1], "fixed": [True, False]}, "`fixed` must be as long as `target_ids`"),
        ({"target_ids": [100]}, "target_ids holds the id 100; the tokenizer has 0 to 99"),
        ({"target_ids": [-1]}, "target_ids holds the id -1"),
        ({"target_ids": [1], "note": ["odd"]}, r"returns the note \['odd'\]; it must be a text"),
        ({"fixed": [True]}, "`fixed` without `target_ids`"),
        (ValueError("no board"), r"task\.preprocess: ValueError: no board\n  in the row text: '1'"),
    ],
)
def test_wrong_columns_and_failures_name_the_slot(gives: Any, message: str) -> None:
    def preprocess(row: Any, tokenizer: Any) -> Any:
        if isinstance(gives, Exception):
            raise gives
        return gives

    with pytest.raises(XLMError, match=message):
        RowEncoder(preprocess=preprocess, tokenizer=LetterTokenizer()).encode({"text": ["1"]})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a JSON lines file for each split."""
    generator = random.Random(0)
    folder = tmp_path / "files"
    folder.mkdir()
    for split, number in (("train", 1500), ("validation", 30)):
        lines = [
            json.dumps({"text": "".join(generator.choices(NUMBERS, k=generator.randrange(1, 60)))})
            for _ in range(number)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join([*lines, json.dumps({"text": "no"})]))
    return folder


def small(row: Any, tokenizer: Any) -> dict[str, Any] | None:
    """Digits as ids; refuses what has none, notes what has a nine."""
    ids = [int(letter) for letter in row["text"] if letter.isdigit()]
    fields: dict[str, Any] = {"target_ids": ids}
    return fields | ({"note": "with a nine"} if 9 in ids else {}) if ids else None


def prepare_files(files: Path, cache_dir: Path, num_proc: int = 1, **changes: Any) -> PreparedTask:
    data_files = {split: str(files / f"{split}.jsonl") for split in ("train", "validation")}
    node = {"_target_": "datasets.load_dataset", "path": "json", "data_files": data_files}
    source = partial(datasets.load_dataset, "json", data_files=data_files)
    splits = {"train": "train[:-10]", "val": "validation"}
    settings = text_task.task(**{"source": node, "splits": splits, **changes})
    parts = text_task.parts(source=source, preprocess=small)
    return prepare(settings, parts, cache_dir=cache_dir, num_proc=num_proc)


def test_several_processes_make_the_same_rows(files: Path, tmp_path: Path) -> None:
    one = prepare_files(files, tmp_path / "one")
    two = prepare_files(files, tmp_path / "two", num_proc=2)
    assert one.folder.name == two.folder.name
    lines = [json.loads(line)["text"] for line in (files / "train.jsonl").read_text().splitlines()][:-10]
    expected = [[int(letter) for letter in text if letter.isdigit()] for text in lines]
    expected = [ids for ids in expected if ids]
    for prepared in (one, two):
        assert prepared.load("train")["target_ids"][:] == expected
    for split in ("train", "val"):
        cards = [asdict(prepared.cards[split]) for prepared in (one, two)]
        for card in cards:
            del card["bytes"]
        assert cards[0] == cards[1]
    assert one.cards["train"].counts.read == 1491
    assert one.cards["train"].counts.refused == 1491 - len(expected) > 0
    assert one.cards["train"].counts.notes == {"with a nine": sum(9 in ids for ids in expected)}


def test_a_part_of_a_split_without_rows_is_reported(files: Path, tmp_path: Path) -> None:
    splits = {"train": "train", "val": "validation[0%:1%]"}
    with pytest.raises(XLMError, match=r"(?s)validation\[0%:1%\].*too few rows.*'task\.splits\.val="):
        prepare_files(files, tmp_path / "cache", splits=splits)


def test_the_content_of_a_file_is_part_of_the_key(files: Path, tmp_path: Path) -> None:
    before = prepare_files(files, tmp_path / "cache")
    assert prepare_files(files, tmp_path / "cache").was_cached
    with (files / "validation.jsonl").open("a") as file:
        file.write('\n{"text": "123"}')
    after = prepare_files(files, tmp_path / "cache")
    assert not after.was_cached
    assert after.cards["val"].rows == before.cards["val"].rows + 1


@pytest.mark.parametrize(
    "change",
    [
        {"length_limit": {"max_length": 5, "longer": "cut"}},
        {"filter": {"_target_": "text_task.even_length"}},
        {"preprocess": {"_target_": "text_task.text_preprocess", "upper": True}},
        {"splits": {"train": "val"}},
        {"source": {"_target_": "text_task.text_rows", "revision": "abc"}},
        {"streaming": True},
    ],
)
def test_the_key_covers_every_setting_that_shapes_rows(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = text_task.prepared(tmp_path).folder
    assert text_task.prepared(tmp_path, text_task.task(**change)).folder != folder
    assert text_task.prepared(tmp_path, text_task.task(packing=text_task.packing())).folder == folder


def test_the_key_covers_the_contents_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = text_task.WordTokenizer()
    tokenizer.vocab_size = 101  # the node in the config is the same
    folder = text_task.prepared(tmp_path).folder
    assert text_task.prepared(tmp_path, tokenizer=tokenizer).folder != folder
    assert tokenizer_fingerprint(text_task.WordTokenizer()) == tokenizer_fingerprint(
        text_task.WordTokenizer()
    )


IMPORTS = ("from .words import WORDS", "from my_task.words import WORDS", "from . import words")


@pytest.mark.parametrize("line", IMPORTS)
def test_the_key_covers_the_files_that_a_function_is_made_of(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``dataset.py`` imports ``words.py``, which imports ``letters.py``; nothing imports ``network.py``."""
    package = tmp_path / "my_task"
    package.mkdir()
    files = {
        "__init__": "",
        "dataset": f"{line}\ndef small(row, tokenizer):\n    return {{'target_ids': [1]}}\n",
        "words": "import string\nfrom .letters import LETTERS as WORDS\n",
        "letters": "LETTERS = 'ab'\n",
        "network": "SIZE = 1\n",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("my_task.dataset").small

    def key() -> str:
        return cache_key(text_task.task(), functions=[function], tokenizer=text_task.WordTokenizer())

    keys = [key()]
    for name in ("letters", "words", "dataset", "network"):
        with (package / f"{name}.py").open("a") as file:
            file.write("MORE = 1\n")
        keys.append(key())
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_task"]:
        del sys.modules[name]
    assert len(set(keys[:4])) == 4
    assert keys[4] == keys[3]


def test_a_source_that_has_no_row_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(XLMError, match=r"no row of the split 'train' is kept: {'read': 40, 'filtered': 40}"):
        text_task.prepared(tmp_path, row_filter=text_task.nothing)


def test_a_prepared_task_needs_no_network_and_no_source(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is a repository of the Hub; only the first time is it read (here from a stand-in)."""
    load = partial(datasets.load_dataset, "json", data_files={"train": str(files / "train.jsonl")})

    def stand_in(path: str, *, revision: str, split: str) -> Any:
        assert (path, revision) == ("nobody/nothing", "main")
        return load(split=split)

    # The key includes only the name of a function of `datasets`.
    stand_in.__module__, stand_in.__qualname__ = "datasets.load", "load_dataset"
    node = {"_target_": "datasets.load_dataset", "path": "nobody/nothing", "revision": "main"}
    settings = text_task.task(source=node, splits={"train": "train"})
    hub = partial(datasets.load_dataset, "nobody/nothing", revision="main")
    first = text_task.prepared(
        tmp_path / "cache",
        settings,
        preprocess=small,
        source=partial(stand_in, "nobody/nothing", revision="main"),
    )

    def no_network(*arguments: object, **keywords: object) -> None:
        raise AssertionError(f"a connection was asked for: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    shutil.copytree(tmp_path / "cache", tmp_path / "another machine")
    again = text_task.prepared(tmp_path / "another machine", settings, preprocess=small, source=hub)
    assert again.was_cached
    assert again.load("train")[:] == first.load("train")[:]


def test_an_offline_machine_without_the_data_gets_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = list[Any]()
    monkeypatch.setattr(socket, "getaddrinfo", asked.append)
    with pytest.raises(XLMError) as caught:
        text_task.prepared(tmp_path, source=partial(datasets.load_dataset, "nobody/nothing"))
    for expected in ("'train'", "job_type=prepare_data", "datamodule.cache_dir", "source=FOLDER"):
        assert expected in str(caught.value)
    assert not asked


def slow_rows(split: str, *, reads: Path) -> Iterator[dict[str, str]]:
    with reads.open("a") as file:
        file.write(f"{split}\n")
    for i in range(5):
        time.sleep(0.05)
        yield {"text": str(i)}


def prepare_slowly(folder: Path, start: Any, number: int) -> None:
    start.wait()
    done = text_task.prepared(folder / "cache", source=partial(slow_rows, reads=folder / "reads"))
    (folder / f"done{number}").write_text(f"{done.was_cached} {len(done.load('train'))}")


def test_two_processes_prepare_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    processes = [context.Process(target=prepare_slowly, args=(tmp_path, start, i)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert sorted(path.read_text() for path in tmp_path.glob("done*")) == ["False 5", "True 5"]
    assert (tmp_path / "reads").read_text().split() == ["train", "val"]
