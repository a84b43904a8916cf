"""Small files as people have them: their rows as they stand, or the file, the line and the cause."""

import json
from pathlib import Path
from typing import Any

import pytest

from xlm.core.config.errors import XLMError
from xlm.core.data import LocalCopy, read_data_files
from xlm.core.data.cache_key import local_files

pytestmark = pytest.mark.usefixtures("datasets_cache")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, *texts: object) -> Path:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def rows(file: Path, split: str = "train", **arguments: Any) -> list[dict[str, Any]]:
    found: Any = LocalCopy(file, arguments).read(split)
    return list(found)


def texts(path: Path, split: str = "train") -> list[str]:
    return [row["text"] for row in rows(path, split)]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.TSV", "a.tab"])
def test_a_table_is_divided_where_its_header_is(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "id\ttext\n1\thello, world\n")
    wanted = [{"id": "1", "text": "hello, world"}]
    assert rows(file) == wanted
    assert list(read_data_files(path="csv", data_files=str(file), split="train")) == wanted


def test_other_separators(tmp_path: Path) -> None:
    semicolons = write(tmp_path / "a.csv", 'id;text\n1;"a; b, c"\n')
    assert rows(semicolons) == [{"id": "1", "text": "a; b, c"}]
    bars = write(tmp_path / "b.csv", "id|text\n1|a,b\n")
    assert rows(bars, path="csv", sep="|") == [{"id": "1", "text": "a,b"}]
    write(tmp_path / "two" / "c.csv", "id,text\n1,2\n")
    write(tmp_path / "two" / "d.csv", "id;text\n1;2\n")
    with pytest.raises(XLMError, match=r"divided by ',' in .*c\.csv and ';' in .*d\.csv"):
        rows(tmp_path / "two")


def test_cells_are_the_texts_that_stand_there(tmp_path: Path) -> None:
    cells = ["NA", "null", "None", "nan", "N/A", "007", "12", "1e3", "1.0", "true", "2024-01-31", "-inf"]
    table = write(tmp_path / "a.csv", "id,text\n" + "".join(f"1,{cell}\n" for cell in cells))
    assert texts(table) == cells
    numbers = write(tmp_path / "b.csv", "text,other\n007,\n12,x\n")
    assert rows(numbers) == [{"text": "007", "other": None}, {"text": "12", "other": "x"}]


def test_a_path_that_exists_is_that_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "br[1] *?{a}"
    jsonl(folder / "train.jsonl", "a")
    jsonl(folder / "validation.jsonl", "b")
    jsonl(tmp_path / "br1 x" / "train.jsonl", "wrong")
    file = folder / "train.jsonl"
    assert texts(folder) == texts(file) == ["a"]
    assert texts(folder, "validation") == ["b"]
    assert texts(Path(f"{tmp_path}/br[1]*/*.jsonl")) == ["wrong"]  # no such path, so a pattern
    monkeypatch.chdir(tmp_path)
    for named in (str(file), "br[1] *?{a}/train.jsonl", {"train": ["br[1] *?{a}/train.jsonl"]}):
        assert list(read_data_files(path="json", data_files=named, split="train")) == [{"text": "a"}]
    assert [name for name, *_ in local_files({"data_files": str(file)})] == ["train.jsonl"]
    assert [name for name, *_ in local_files(str(folder))] == ["train.jsonl", "validation.jsonl"]


def test_patterns_reach_into_folders(tmp_path: Path) -> None:
    for place in ("a", "a/b", "a/b/c"):
        jsonl(tmp_path / place / "x.jsonl", place)
    pattern = f"{tmp_path}/**/*.jsonl"
    found = read_data_files(path="json", data_files=pattern, split="train")
    assert [row["text"] for row in found] == texts(Path(pattern)) == ["a/b/c", "a/b", "a"]
    assert len(list(local_files({"data_files": pattern}))) == 3


BESIDE = (
    "LICENSE.txt",
    "README.txt",
    "NOTICE.txt",
    "requirements.txt",
    "LICENSE",
    "dataset_info.json",
    ".x.txt",
)


def test_what_lies_beside_data_is_none(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        jsonl(tmp_path / f"{split}.jsonl", split)
    for name in BESIDE:
        write(tmp_path / name, "x")
    write(tmp_path / "README.md", "# About\n")
    for split in ("train", "validation", "test"):
        assert texts(tmp_path, split) == [split]
    write(tmp_path / "notes.txt", "x")  # no name of a split, so it is not meant either
    assert texts(tmp_path) == ["train"]


def test_a_folder_of_texts_with_a_licence(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\n")
    write(tmp_path / "LICENSE.txt", "x\n")
    assert texts(tmp_path) == ["one"]
    alone = write(tmp_path / "alone" / "readme.txt", "two\n")
    assert texts(alone.parent) == ["two"]


def test_two_kinds_that_could_both_be_meant(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", "a")
    write(tmp_path / "b.csv", "text\nb\n")
    with pytest.raises(
        XLMError, match=r"several kinds \(1 \.csv and 1 \.jsonl\)\. Choose one: .*/\*\*/\*\.csv'"
    ):
        rows(tmp_path)
    assert texts(Path(f"{tmp_path}/**/*.csv")) == ["b"]
    jsonl(tmp_path / "train.jsonl", "train")
    write(tmp_path / "train.csv", "text\nb\n")
    with pytest.raises(XLMError, match="several kinds"):
        rows(tmp_path)


def test_the_card_of_a_repository_says_which_files_are_meant(tmp_path: Path) -> None:
    jsonl(tmp_path / "x" / "one.jsonl", "train")
    jsonl(tmp_path / "x" / "two.jsonl", "other")
    configs = """configs:
- config_name: small
  data_files: [{split: train, path: x/two.jsonl}]
- config_name: default
  data_files: [{split: train, path: "x/o*.jsonl"}]
"""
    write(tmp_path / "README.md", f"---\nlicense: mit\n{configs}---\n# About\n")
    assert texts(tmp_path) == ["train"]
    assert rows(tmp_path, name="small") == [{"text": "other"}]


LONG_NULL = b'{"text": null}\n' * 4000 + b'{"text": "at last"}\n'
FAULTS = {
    "cut off": (b'{"text": "a"}\n{"text": "b"}\n{"text": "c', r"line 3: Unterminated string.*truncated\?"),
    "no object": (b'{"text": "a"}\n[1]\n', r"line 2: a row is an object, \{\.\.\.\}; found \[1\]"),
    "late text": (LONG_NULL, "line 4001: text is a text, in the lines before it is null"),
    "latin-1": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"line 2: invalid .*0xe9.*not utf-8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_json_lines_name_the_line(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    jsonl(tmp_path / "train-1.jsonl", None if fault == "late text" else "good")
    write(tmp_path / "train-2.jsonl", content)
    with pytest.raises(XLMError, match=rf"train-2\.jsonl, {message}") as caught:
        rows(tmp_path, path="json", chunksize=2**15)
    assert "network" not in str(caught.value)
    assert "\n" not in str(caught.value)


OTHER_FAULTS = {
    "a.json": (b'[{"text": "a"}, {"text": ', "a.json: Expecting value: line 1"),
    "a.csv": (b"id,text\n1,a\n2,b,c,d\n", r"a\.csv: .*Expected 2 fields in line 3, saw 4"),
    "a.txt": (b"one\ncaf\xe9\n", r"a\.txt, line 2: .*0xe9.*encoding_errors=replace"),
    "a.parquet": (b"PAR1" + b"x" * 40, r"a\.parquet: "),
}


@pytest.mark.parametrize("name", OTHER_FAULTS)
def test_faults_of_other_files_name_the_file(tmp_path: Path, name: str) -> None:
    content, message = OTHER_FAULTS[name]
    with pytest.raises(XLMError, match=message) as caught:
        rows(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["line", "paragraph", "document"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, by: str) -> None:
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n")
    [row] = rows(file, path="text", sample_by=by)
    assert row["text"].rstrip("\n") == "one"
    more: dict[str, Any] = {"sample_by": by, "encoding_errors": "replace"}
    [row] = read_data_files(path="text", data_files=str(file), split="train", **more)
    assert str(row["text"]).rstrip("\n") == "one"


def test_a_byte_order_mark_of_other_formats_is_no_name_of_a_column(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,b\nx,y\n")) == [{"text": "x", "b": "y"}]
    assert rows(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "x"}\n')) == [{"text": "x"}]
    wide = write(tmp_path / "wide.txt", "one\n".encode("utf-16"))
    assert rows(wide, path="text", encoding="utf-16") == [{"text": "one"}]
    with pytest.raises(XLMError, match=r"wide\.txt, line 1: .*task\.source\.encoding"):
        rows(wide)
