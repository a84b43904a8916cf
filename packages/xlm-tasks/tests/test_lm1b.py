import pytest

from xlm.tasks.lm1b import detokenise, encode_lm1b
from xlm.tasks.tokenizers import PretrainedTokenizer

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
