"""YAML and JSON from elsewhere as plain values, bounded in size and depth before they are parsed.

A parser that reads 500 nested brackets, an integer of 5,000 digits or UTF-16 raises an error of its own, or
does not end. Here each of these is one message.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from xlm.core.config.errors import XLMError

LARGEST = 2**18
"""Size limit in bytes of a YAML file, and the default for JSON."""
DEEPEST = 32
"""Depth limit of nested mappings and lists; a config has less than ten levels."""
MOST = 20_000
"""Limit of keys and values in a YAML file."""
LONGEST_NUMBER = 40
"""Length limit of a number in characters."""
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
"""Exceptions of the parsers for malformed texts."""


def read_yaml(file: Path, what: str) -> Any:
    """Read a YAML file: mappings, lists and scalars without tags and aliases.

    Args:
        file: The file.
        what: The user's name for it, for messages.

    Raises:
        XLMError: If it is too large, too deep, or not such YAML.
    """
    text = _text(file, what, LARGEST)
    try:
        _check_events(text)
        return yaml.load(text, LOADER)
    except PARSING as error:
        raise XLMError(f"{what} cannot be read as YAML: {_one_line(error)}") from error


def read_json(file: Path, what: str, *, largest: int = LARGEST) -> Any:
    """Read a JSON file.

    Args:
        file: The file.
        what: The user's name for it, for messages.
        largest: Size limit in bytes.

    Raises:
        XLMError: If it is too large, too deep, or not JSON.
    """
    text = _text(file, what, largest)
    try:
        depth = 0
        for match in BRACKETS.finditer(text):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            _check_depth(depth)
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # a lone surrogate cannot be written
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
            f"{what} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}"
        ) from error


def _check_events(text: str) -> None:
    """Reject texts that are expensive to parse. Builds nothing."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, LOADER)):
        if number > MOST:
            raise ValueError(f"it holds more than {MOST:,} keys and values")
        if isinstance(event, yaml.AliasEvent):  # repeats a part; nested aliases can exhaust memory
            raise ValueError(f"aliases are not allowed, and it has *{event.anchor}")
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag is not None:
            raise ValueError(f"tags are not allowed, and it has {event.tag!r}")
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
    value.encode()  # a lone surrogate cannot be written


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
