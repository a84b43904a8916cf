"""The texts of the repository use the terms of CONTRIBUTING.md."""

import re

import pytest

from .layout import ROOT
from .test_repository import tracked

TEXTS = ("*.md", "*.py", "*.yaml", "*.yml", "*.toml", "*.jinja")
LIST = ROOT / "CONTRIBUTING.md"


def unwanted() -> dict[str, str]:
    """Each searched word of the list, and the preferred one."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    return {word: better for better, others in rows for word in re.findall(r"`([^`]+)`", others)}


def found_in(text: str, word: str) -> list[int]:
    """Numbers of the lines that hold the word, also across a line break or as a part of a name_like_this."""
    pattern = r"[\s#]+".join(map(re.escape, word.split()))
    return [
        text.count("\n", 0, match.start()) + 1
        for match in re.finditer(rf"(?<![A-Za-z]){pattern}(?![A-Za-z])", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("pattern", TEXTS)
def test_texts_use_the_preferred_terms(pattern: str) -> None:
    words = unwanted()
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}, better {better!r}"
        for path in tracked(pattern)
        if path not in (LIST, ROOT / "tests/architecture/test_words.py")
        for word, better in words.items()
        for line in found_in(path.read_text(encoding="utf-8"), word)
    ]
    assert not faults, "\n".join(faults)


def test_the_list_is_read_and_searched() -> None:
    words = unwanted()
    assert words["law"] == "distribution"
    assert len(words) > 15
    assert found_in("a\nexact_law = 1\nflaw, lawn", "law") == [2]
    assert found_in("# kept for\n# ever", "for ever") == [1]
