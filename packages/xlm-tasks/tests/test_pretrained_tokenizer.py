"""The tokenizers of GPT-2 and BERT, from the files of packages in the dependency group `data`."""

import json
import pickle
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from xlm.tasks.tokenizers import NumberTokenizer, PretrainedTokenizer

GPT2_TOKENS = {"pad": "<|pad|>", "mask": "<|mask|>", "bos": "<|bos|>", "cls": "<|cls|>"}
HARD_TEXTS = [
    "",
    " ",
    "Hello world",
    "tabs\tand\nlines\r\n  and   spaces ",
    "naïve café, 東京, 🙂 and \x00 \x7f",
    "<|endoftext|> is no special token here, nor is [MASK] or <|mask|>",
    "word " * 3000,
]


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> PretrainedTokenizer:
    return PretrainedTokenizer(str(gpt2_folder), special_tokens=GPT2_TOKENS)


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> PretrainedTokenizer:
    return PretrainedTokenizer(str(bert_folder), special_tokens={"bos": "[BOS]", "eos": "[SEP]", "sep": None})


def test_published_ids(gpt2: PretrainedTokenizer, bert: PretrainedTokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert bert.encode("Hello World") == [7592, 2088]
    assert (gpt2.eos_id, gpt2.unk_id, gpt2.vocab_size) == (50256, 50256, 50257 + 4)
    assert (bert.pad_id, bert.cls_id, bert.mask_id, bert.eos_id) == (0, 101, 103, 102)
    assert (bert.bos_id, bert.sep_id, bert.vocab_size) == (30522, None, 30523)


def test_missing_special_tokens_are_added_in_order(gpt2: PretrainedTokenizer) -> None:
    assert [gpt2.pad_id, gpt2.mask_id, gpt2.bos_id, gpt2.cls_id] == [50257, 50258, 50259, 50260]
    assert gpt2.decode([50259, 15496, 50258, 50256]) == "<|bos|>Hello<|mask|><|endoftext|>"


@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_text_comes_back_and_holds_no_special_token(gpt2: PretrainedTokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert not {50256, 50257, 50258, 50259, 50260} & set(ids)


def test_a_batch_has_the_ids_of_its_texts(gpt2: PretrainedTokenizer, bert: PretrainedTokenizer) -> None:
    for tokenizer in (gpt2, bert):
        assert tokenizer.encode_batch(HARD_TEXTS) == [tokenizer.encode(text) for text in HARD_TEXTS]
        assert tokenizer.encode_batch([]) == []


def test_nothing_is_cut_or_padded_although_the_file_asks_for_it(
    bert: PretrainedTokenizer, bert_folder: Path
) -> None:
    settings = json.loads((bert_folder / "tokenizer.json").read_text())
    assert settings["truncation"]["max_length"] == settings["padding"]["strategy"]["Fixed"] == 128
    assert bert.encode("word " * 3000) == [2773] * 3000
    assert bert.encode("word") == [2773]


def test_bert_shows_special_tokens_and_encodes_their_names_as_text(bert: PretrainedTokenizer) -> None:
    assert bert.decode([30522, 7592, 103, 102]) == "[BOS] hello [MASK] [SEP]"
    assert bert.encode("[MASK]") == [1031, 7308, 1033]


def test_an_id_outside_the_vocabulary_is_refused(bert: PretrainedTokenizer) -> None:
    with pytest.raises(ValueError, match=r"id 30523 is not in \[0, 30523\)"):
        bert.decode([7592, 30523])


def test_saved_files_make_the_same_tokenizer(gpt2: PretrainedTokenizer, tmp_path: Path) -> None:
    gpt2.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.mask_token_id, loaded.bos_token_id) == (50257, 50258, 50259)
    assert loaded.encode("Hello world", add_special_tokens=False) == [15496, 995]
    ours = PretrainedTokenizer(str(tmp_path))
    assert (ours.cls_id, ours.eos_id, ours.vocab_size) == (50260, 50256, 50261)


def test_the_fingerprint_is_that_of_the_contents(gpt2: PretrainedTokenizer, tmp_path: Path) -> None:
    gpt2.save_pretrained(tmp_path / "copy")
    assert PretrainedTokenizer(str(tmp_path / "copy")).fingerprint == gpt2.fingerprint
    other = PretrainedTokenizer(str(tmp_path / "copy"), special_tokens={"sep": "<|sep|>"})
    assert other.fingerprint != gpt2.fingerprint


def test_an_empty_role_stays_empty_when_saved(gpt2_folder: Path, tmp_path: Path) -> None:
    PretrainedTokenizer(str(gpt2_folder), special_tokens={"eos": None, "bos": None}).save_pretrained(tmp_path)
    loaded = PretrainedTokenizer(str(tmp_path))
    assert (loaded.eos_id, loaded.bos_id, loaded.unk_id) == (None, None, 50256)


def test_another_process_gets_the_same_tokenizer(gpt2: PretrainedTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(gpt2))
    assert copy.encode(HARD_TEXTS[5]) == gpt2.encode(HARD_TEXTS[5])
    assert copy.mask_id == gpt2.mask_id


def test_files_without_a_vocabulary_are_refused(tmp_path: Path) -> None:
    """`transformers` makes a tokenizer of one token from such a folder, without a word."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ValueError, match="hold no vocabulary"):
        PretrainedTokenizer(str(tmp_path))


def test_an_unknown_role_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown roles.*'end'.*the roles are pad, cls"):
        PretrainedTokenizer(str(gpt2_folder), special_tokens={"end": "x"})


def test_a_saved_number_tokenizer_is_read_by_transformers(tmp_path: Path) -> None:
    tokenizer = NumberTokenizer(20)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "12 7 [SEP] 0 19 [MASK]"
    assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text
    roles = ("pad", "cls", "mask", "eos", "bos", "sep", "unk")
    assert [getattr(loaded, f"{role}_token_id") for role in roles] == list(range(7))
    assert tokenizer.encode_batch(["1 2", ""]) == [[8, 9], []]
