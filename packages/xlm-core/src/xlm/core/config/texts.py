"""YAML and JSON from elsewhere as plain values, bounded in size and depth before they are parsed.

A parser that is handed 500 nested brackets, an integer of 5,000 digits or UTF-16 ends in an error of its own,
or does not end. Here each of these is one message.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from xlm.core.config.errors import XLMError

LARGEST = 2**18
"""Bytes of a file of YAML, and of JSON unless its reader says otherwise."""
DEEPEST = 32
"""Levels of mappings and lists in one another; a config has less than ten."""
MOST = 20_000
"""Keys and values in a file of YAML."""
LONGEST_NUMBER = 40
"""Characters of a number."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
NUMBER = re.compile(r"[-+]?(0x[0-9a-fA-F_]+|[0-9_:.]+(e[-+]?[0-9]+)?)", re.IGNORECASE)
PARSING = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    RecursionError,
)
"""What the parsers raise for texts that are not what they say."""


def read_yaml(file: Path, what: str) -> Any:
    """The content of a file of YAML: mappings, lists and scalars without tags and aliases.

    Args:
        file: The file.
        what: What the user calls it, for messages.

    Raises:
        XLMError: When it is too large or too deep, or is no such YAML.
    """
    text = _text(file, what, LARGEST)
    try:
        _check_events(text)
        return yaml.load(text, LOADER)
    except PARSING as error:
        raise XLMError(f"{what} cannot be read as YAML: {_one_line(error)}") from error


def read_json(file: Path, what: str, *, largest: int = LARGEST) -> Any:
    """The content of a file of JSON.

    Args:
        file: The file.
        what: What the user calls it, for messages.
        largest: Bytes above which it is not read.

    Raises:
        XLMError: When it is too large or too deep, or is no JSON.
    """
    text = _text(file, what, largest)
    try:
        depth = 0
        for match in BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            _check_depth(depth)
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
    except (ValueError, RecursionError) as error:
        raise XLMError(f"{what} cannot be read as JSON: {_one_line(error)}") from error
    return content


def _text(file: Path, what: str, largest: int) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise XLMError(f"{what} cannot be read: {_one_line(error)}") from error
    if len(content) > largest:
        raise XLMError(f"{what} is too large: files up to {largest / 2**20:g} MiB are read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise XLMError(
            f"{what} is no text in UTF-8: byte {error.start} is {content[error.start]:#04x}"
        ) from error


def _check_events(text: str) -> None:
    """Refuse what would cost more than a look at it. Builds nothing."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, LOADER)):
        if number > MOST:
            raise ValueError(f"it holds more than {MOST:,} keys and values")
        if isinstance(event, yaml.AliasEvent):  # repeats a part; a few of them, nested, fill the memory
            raise ValueError(f"it is to be without aliases, and has *{event.anchor}")
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag is not None:
            raise ValueError(f"it is to be without tags, and has {event.tag!r}")
        if isinstance(event, yaml.ScalarEvent):
            _check_scalar(event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        _check_depth(depth)


def _check_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _check_scalar(event: yaml.ScalarEvent) -> None:
    value = str(event.value)
    if not event.style and len(value) > LONGEST_NUMBER and NUMBER.fullmatch(value):
        raise ValueError(f"it holds a number of {len(value):,} characters, {value[:10]}...")
    if "\0" in value:
        raise ValueError("it holds a text with the character NUL")
    value.encode()  # half a surrogate pair cannot be written


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
