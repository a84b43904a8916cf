"""Rows with a text to examples, for every data set of plain text."""

from collections.abc import Mapping
from typing import TypedDict


class EncodedText(TypedDict):
    """A row whose text is still to be tokenised, together with many others."""

    target_ids: str


def encode_text(
    row: Mapping[str, object], tokenizer: object = None, *, column: str = "text"
) -> EncodedText | None:
    """The text of a row as the target of an example; nothing is given.

    A row without any character but white space is left out (None); the preparation counts it.

    Args:
        row: a raw row.
        tokenizer: not used here: the text of many rows is tokenised at once.
        column: name of the column with the text.

    Raises:
        ValueError: if the row has no such column, or something else than a text in it.
    """
    if column not in row:
        raise ValueError(f"the rows have no column {column!r}; they have {', '.join(row)}")
    text = row[column]
    if not isinstance(text, str):
        raise ValueError(f"the column {column!r} holds {type(text).__name__}, not a text: {text!r:.60}")
    if not text or text.isspace():
        return None
    return {"target_ids": text}
