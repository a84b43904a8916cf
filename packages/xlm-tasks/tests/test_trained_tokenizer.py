from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from xlm.tasks.tokenizers import TrainedTokenizer, train_bpe

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
