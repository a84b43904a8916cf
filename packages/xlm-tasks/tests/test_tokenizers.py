"""Tokenizers: numbers, trained on the data, and pretrained ones."""

import json
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from xlm.tasks.tokenizers import NumberTokenizer, PretrainedTokenizer, TrainedTokenizer, train_bpe


def test_number_tokenizer_has_the_agreed_ids() -> None:
    tokenizer = NumberTokenizer(20)
    assert tokenizer.encode("[PAD] [CLS] [MASK] [EOS] [BOS] [SEP] [UNK] 0 1 19") == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        26,
    ]
    assert tokenizer.vocab_size == 27
    special_ids = (
        tokenizer.pad_id,
        tokenizer.cls_id,
        tokenizer.mask_id,
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.sep_id,
        tokenizer.unk_id,
    )
    assert special_ids == (0, 1, 2, 3, 4, 5, 6)


def test_number_tokenizer_writes_names_with_single_spaces() -> None:
    tokenizer = NumberTokenizer(20)
    assert tokenizer.decode([19, 14, 5]) == "12 7 [SEP]"
    assert tokenizer.encode("  12\t7\n[SEP] ") == [19, 14, 5]


def test_number_tokenizer_round_trips_every_id() -> None:
    tokenizer = NumberTokenizer(123)
    ids = list(range(tokenizer.vocab_size))
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert len(set(tokenizer.decode(ids).split())) == tokenizer.vocab_size


def test_number_tokenizer_accepts_empty_texts() -> None:
    tokenizer = NumberTokenizer(1)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("name", ["20", "-1", "07", "1.0", "[sep]", "hub"])
def test_number_tokenizer_refuses_unknown_names(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not a token; allowed are the numbers 0 to 19 and \[PAD\]"
    ) as caught:
        NumberTokenizer(20).encode(f"3 {name} 4")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("token_id", [-1, 27])
def test_number_tokenizer_refuses_ids_out_of_range(token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"id {token_id} is not in \[0, 27\)"):
        NumberTokenizer(20).decode([3, token_id])


@pytest.mark.parametrize("num_numbers", [0, -1, 10_000_001, 10**12, 10**100])
def test_number_tokenizer_needs_a_number_of_names_that_it_can_hold(num_numbers: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 10,000,000, got {num_numbers}"):
        NumberTokenizer(num_numbers)


TEXT = "the cat sat on the mat, the cat ate the rat. "


READ: list[str] = []


def rows(split: str, *, word: str = "") -> Iterator[dict[str, object]]:
    READ.append(split)
    for _ in range(3):
        yield {"text": f"{TEXT}{word} {split}"}


def test_it_is_trained_once_and_found_afterwards(tmp_path: Path) -> None:
    READ.clear()
    first = TrainedTokenizer(rows, split="train", vocab_size=280, folder=str(tmp_path))
    again = TrainedTokenizer(rows, split="train", vocab_size=280, folder=str(tmp_path))
    assert READ == ["train"]
    assert again.encode(TEXT) == first.encode(TEXT)
    assert first.vocab_size == 280
    assert len(list(tmp_path.iterdir())) == 1


def test_a_saved_one_is_taken_whatever_the_rows(tmp_path: Path) -> None:
    first = TrainedTokenizer(rows, split="train", vocab_size=280, folder=str(tmp_path / "cache"))
    first.save_pretrained(tmp_path / "model")
    READ.clear()
    other = partial(rows, word="dog")
    unused, model = str(tmp_path / "unused"), str(tmp_path / "model")
    again = TrainedTokenizer(other, split="val", vocab_size=300, folder=unused, saved=model)
    assert again.encode(TEXT) == first.encode(TEXT)
    assert (again.vocab_size, again.mask_id) == (280, first.mask_id)
    assert not READ
    with pytest.raises(ValueError, match=r"there is no tokenizer\.json in"):
        TrainedTokenizer(rows, split="train", vocab_size=280, folder=str(tmp_path), saved=str(tmp_path))


def test_other_rows_or_settings_make_another_tokenizer(tmp_path: Path) -> None:
    READ.clear()
    for source, split, size in [
        (rows, "train", 280),
        (rows, "train", 281),
        (rows, "val", 280),
        (partial(rows, word="dog"), "train", 280),
        (partial(rows, word="hen"), "train", 280),
    ]:
        TrainedTokenizer(source, split=split, vocab_size=size, folder=str(tmp_path))
    assert len(READ) == len(list(tmp_path.iterdir())) == 5


def test_any_text_comes_back(tmp_path: Path) -> None:
    tokenizer = TrainedTokenizer(rows, split="train", vocab_size=300, folder=str(tmp_path))
    for text in (TEXT, "", "\n\t 東京 🙂 <|mask|>", "cat<|eos|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXT)) < len(TEXT) / 2
    special = [tokenizer.bos_id, tokenizer.cls_id, tokenizer.eos_id, tokenizer.mask_id, tokenizer.pad_id]
    assert special == [0, 1, 2, 3, 4]
    assert tokenizer.unk_id is None


def test_training_is_deterministic() -> None:
    texts = [TEXT, "a rat, a mat. " * 5]
    first, again = (train_bpe(iter(texts), vocab_size=290, special_tokens=["<|pad|>"]) for _ in range(2))
    assert first.to_str() == again.to_str()
    assert first.token_to_id("<|pad|>") == 0


def test_a_vocabulary_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"at least 263 \(256 bytes, 6 special tokens and a merge\), got 100"
    ):
        TrainedTokenizer(rows, split="train", vocab_size=100, folder=str(tmp_path))


def test_no_text_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def nothing(split: str) -> list[dict[str, object]]:
        return [{"text": ""}]

    with pytest.raises(ValueError, match="no text"):
        TrainedTokenizer(nothing, split="train", vocab_size=300, folder=str(tmp_path))
    with pytest.raises(ValueError, match="no column 'body'; they have text"):
        TrainedTokenizer(nothing, split="train", column="body", vocab_size=300, folder=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


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
