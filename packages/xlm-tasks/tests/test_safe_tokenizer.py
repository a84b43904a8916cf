import pickle
import re
from pathlib import Path

import pytest
from safe import SAFESplitter
from transformers import AutoTokenizer

from xlm.tasks.safe import PATTERN, SafeTokenizer, make_vocabulary, nci_rows, split_safe
from xlm.tasks.safe.chemistry import smiles_to_safe

ASPIRIN = "c13ccccc14.CC2=O.C4(=O)O.O23"
STRINGS = [
    ASPIRIN,
    "C[C@@H](N)C(=O)[O-].[Na+]",
    "Brc1ccc(Cl)cc1C%10.[nH]%10",
    r"F/C=C\F",
    "[13C]#N",
]


@pytest.fixture(scope="module")
def molecules() -> list[str]:
    encoded = [smiles_to_safe(row["input"]) for row in nci_rows("val", num_rows={"val": 150})]
    return [text for text in encoded if text is not None]


@pytest.fixture(scope="module")
def tokenizer() -> SafeTokenizer:
    return SafeTokenizer()


def test_pattern_is_the_published_one(molecules: list[str]) -> None:
    assert PATTERN == SAFESplitter.REGEX_PATTERN
    splitter = SAFESplitter()
    for text in [*STRINGS, *molecules]:
        assert split_safe(text) == splitter.tokenize(text)


def test_tokens_and_text_undo_each_other(tokenizer: SafeTokenizer, molecules: list[str]) -> None:
    for text in [*STRINGS, *molecules]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert [tokenizer.decode([index]) for index in ids] == split_safe(text)
        assert tokenizer.unk_id not in ids
    assert tokenizer.encode_batch(STRINGS) == [tokenizer.encode(text) for text in STRINGS]


def test_special_tokens_are_those_of_the_other_tasks(tokenizer: SafeTokenizer) -> None:
    special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id)
    assert special == (0, 1, 2, 3, 4)
    assert (tokenizer.sep_id, tokenizer.unk_id) == (5, 6)


def test_what_is_not_in_the_vocabulary_is_unknown(tokenizer: SafeTokenizer) -> None:
    assert tokenizer.encode("C[UuoH]C") == [
        tokenizer.encode("C")[0],
        tokenizer.unk_id,
        tokenizer.encode("C")[0],
    ]
    assert tokenizer.unk_id in tokenizer.encode("CXC")


def test_it_is_the_same_after_saving_and_pickling(tokenizer: SafeTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    pickled = pickle.loads(pickle.dumps(tokenizer))
    for text in STRINGS:
        assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert loaded.decode(tokenizer.encode(text)) == text
        assert pickled.encode(text) == tokenizer.encode(text)
    assert loaded.mask_token_id == tokenizer.mask_id


def test_a_vocabulary_does_not_depend_on_the_order_of_the_texts(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(STRINGS)
    assert vocabulary == make_vocabulary(reversed(STRINGS * 2))
    assert "[13C]" in vocabulary
    assert set(vocabulary) - set(make_vocabulary([])) == {"[13C]", "[Na+]"}
    assert all(re.fullmatch(PATTERN, token) for token in vocabulary)
    file = tmp_path / "vocabulary.txt"
    file.write_text("\n".join(vocabulary))
    own = SafeTokenizer(str(file))
    assert own.vocab_size == 7 + len(vocabulary)
    file.write_text("C\nN\nC\n")
    with pytest.raises(ValueError, match="C stand there more than once"):
        SafeTokenizer(str(file))


def test_the_shipped_vocabulary_is_what_it_says(tokenizer: SafeTokenizer) -> None:
    tokens = [tokenizer.decode([index]) for index in range(7, tokenizer.vocab_size)]
    assert tokens == make_vocabulary(tokens)
