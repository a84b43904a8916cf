"""Rows with texts to examples, for every data set of plain text."""

from collections.abc import Mapping
from typing import TypedDict


class EncodedText(TypedDict):
    """A row whose text is still to be tokenised, together with many others."""

    target_ids: str


class EncodedPair(EncodedText):
    """A row whose prompt and target are still to be tokenised."""

    prompt_ids: str


def encode_text(
    row: Mapping[str, object], tokenizer: object = None, *, column: str = "text"
) -> EncodedText | None:
    """The text of a row as the target of an example; nothing is given.

    A row without any character but white space is left out (None); the preparation counts it.

    Args:
        row: A raw row.
        tokenizer: Not used here: the text of many rows is tokenised at once.
        column: Name of the column with the text.

    Raises:
        ValueError: If the row has no such column, or something else than a text in it.
    """
    text = _text(row, column)
    return {"target_ids": text} if text.strip() else None


def encode_pair(
    row: Mapping[str, object],
    tokenizer: object = None,
    *,
    prompt_column: str = "prompt",
    target_column: str = "target",
) -> EncodedPair | None:
    """Two texts of a row as prompt and target of an example.

    A row whose target has no character but white space is left out (None); an empty prompt gives nothing.

    Args:
        row: A raw row.
        tokenizer: Not used here: the text of many rows is tokenised at once.
        prompt_column: Name of the column of the prompt.
        target_column: Name of the column with what is to be generated.

    Raises:
        ValueError: If the row has no such column, or something else than a text in it.
    """
    prompt, target = _text(row, prompt_column), _text(row, target_column)
    return {"prompt_ids": prompt, "target_ids": target} if target.strip() else None


def _text(row: Mapping[str, object], column: str) -> str:
    """The text of a column; an empty one where the row has none."""
    if column not in row:
        raise ValueError(f"the rows have no column {column!r}; they have {', '.join(row)}")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the column {column!r} holds {type(text).__name__}, not a text: {text!r:.60}")
    return text or ""
