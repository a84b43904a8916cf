"""Texts that exhaust or confuse a parser end in one message, before they are parsed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm.core.config import texts
from xlm.core.config.errors import XLMError
from xlm.core.config.texts import DEEPEST, LARGEST, MOST, read_json, read_yaml

Read = Callable[[Path, str], Any]


def read(reader: Read, folder: Path, content: str | bytes) -> Any:
    file = folder / "file"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return reader(file, "The file")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_usual_files_are_read(tmp_path: Path) -> None:
    expected = {"a": [1, 2.5, None, True, "x"], "b": {"c": "é"}}
    assert read(read_yaml, tmp_path, "a: [1, 2.5, null, true, x]\nb: {c: é}") == expected
    assert read(read_json, tmp_path, '{"a": [1, 2.5, null, true, "x"], "b": {"c": "é"}}') == expected
    digest = "0" + "9f" * 31 + "a"
    assert read(read_yaml, tmp_path, f"a: {digest}") == {"a": digest}
    assert read(read_yaml, tmp_path, b"\xef\xbb\xbfa: 1") == {"a": 1}


def test_the_limits_themselves_are_read(tmp_path: Path) -> None:
    assert read(read_yaml, tmp_path, nested(DEEPEST)) is not None
    assert read(read_json, tmp_path, nested(DEEPEST)) is not None
    assert len(read(read_yaml, tmp_path, "a: " + "x" * (LARGEST - 3))["a"]) == LARGEST - 3
    assert read(read_json, tmp_path, '"' + "[" * 1000 + '\\""') == "[" * 1000 + '"'


SAME: dict[str, tuple[str | bytes, str]] = {
    "too deep": (nested(DEEPEST + 1), "levels deep"),
    "500 brackets": (nested(500), "levels deep"),
    "never closed": ("[" * 100_000, "levels deep"),
    "braces": ('{"a": ' * 500 + "1" + "}" * 500, "levels deep"),
    "too large": ("1" * (LARGEST + 1), r"files up to 0\.25 MiB"),
    "no UTF-8": (b'{"a": "\xff\xfe"}', "byte 7 is 0xff"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte 0 is 0xff"),
    "UTF-32": ('{"a": 1}'.encode("utf-32-le") + b"\xff", "byte|NUL|cannot be read as"),
    "half a surrogate pair": ('{"a": "\\ud800"}', "surrogates not allowed|invalid Unicode"),
    "5,000 digits": ('{"a": ' + "9" * 5000 + "}", "5,000 characters|4300"),
    "nothing closed": ('{"a": [', "The file cannot be read as"),
}
YAML: dict[str, tuple[str, str]] = {
    "alias": ("a: &a [x, x]\nb: [*a, *a]", r"aliases are not allowed, and it has \*a"),
    "python": ("a: !!python/object/apply:os.system [true]", "tags are not allowed, and it has '.*os.system'"),
    "tag": ("a: !!int ''", "tags are not allowed"),
    "sexagesimal": ("a: 1" + ":59" * 1000, "a number of 3,001 characters"),
    "hexadecimal": ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
    "many": ("[" + "1," * MOST + "1]", "more than 20,000 keys and values"),
    "NUL": ('a: "\\0"', "the character NUL"),
    "unhashable": ("{[a]: 1}", "The file cannot be read as YAML"),
    "two documents": ("a: 1\n---\nb: 1", "The file cannot be read as YAML"),
    "no such day": ("a: 2020-13-99", "The file cannot be read as YAML"),
    "blocks": ("\n".join(" " * level + "a:" for level in range(400)), "levels deep"),
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize("case", SAME | YAML)
def test_what_is_no_yaml(case: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LOADER", getattr(yaml, loader))
    content, message = (SAME | YAML)[case]
    with pytest.raises(XLMError, match=message) as error:
        read(read_yaml, tmp_path, content)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


@pytest.mark.parametrize("case", SAME)
def test_what_is_no_json(case: str, tmp_path: Path) -> None:
    content, message = SAME[case]
    with pytest.raises(XLMError, match=message) as error:
        read(read_json, tmp_path, content)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for reader in (read_yaml, read_json):
        with pytest.raises(XLMError, match="The file cannot be read"):
            reader(tmp_path, "The file")
