"""Pictures for the viewer: graphs, boards and molecules, one size for all steps."""

import re
from xml.etree import ElementTree as Tree

import pytest

from xlm.tasks.safe import drawing as molecule
from xlm.tasks.star import drawing as star
from xlm.tasks.sudoku_extreme import drawing as board

SPACE = "{http://www.w3.org/2000/svg}"


def parsed(text: str | None) -> Tree.Element:
    assert text is not None
    return Tree.fromstring(text)


def classes(picture: Tree.Element, tag: str) -> list[str | None]:
    return [node.get("class") for node in picture.iter(tag)]


def test_a_graph_shows_its_path() -> None:
    prompt = "3 8 8 0 3 6 6 2 3 2"
    empty, half = (parsed(star.draw(prompt, tokens, {2, 3})) for tokens in ([], ["3", "6", "6", "2"]))
    assert [node.text for node in half.iter("text")] == [node.text for node in empty.iter("text")]
    assert classes(empty, "line") == ["faint"] * 4
    assert classes(half, "line") == ["faint"] * 4 + ["given", "edited"]
    assert empty.get("viewBox") == half.get("viewBox")
    wrong = parsed(star.draw(prompt, ["8", "2", "[MASK]", "2"], set()))
    assert [line.get("stroke-dasharray") for line in wrong.iter("line")] == [None] * 4 + ["4 4"]
    assert star.draw("a b c d", [], set()) is None


def test_a_board_shows_its_digits() -> None:
    digits = [str(place % 9 + 1) for place in range(81)]
    whole = parsed(board.draw("", [*digits[:-1], "[MASK]"], {0}))
    assert [node.text for node in whole.iter("text")] == digits[:-1]
    assert classes(whole, "text").count("edited") == len(list(whole.iter("rect"))) == 1
    puzzle = parsed(board.draw(" ".join(["0", *digits[1:-1], "0"]), ["7"], {0}))
    assert [node.text for node in puzzle.iter("text")] == ["7", *digits[1:-1]]
    assert board.draw("", digits[:-1], set()) is None


def test_a_molecule_is_drawn_when_it_is_one() -> None:
    pytest.importorskip("rdkit")
    drawn = molecule.draw("", ["C", "C", "O"], {1})
    assert drawn is not None
    assert drawn.startswith("<svg")
    assert len(list(parsed(drawn).iter(f"{SPACE}path"))) > 1
    assert re.search(r"width=.320(px)?. height=.220(px)?.", drawn)
    for tokens in (["C", "("], ["[MASK]", "C"]):
        assert "no molecule yet" in (molecule.draw("", tokens, set()) or "")
