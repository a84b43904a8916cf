import pytest

from xlm.tasks.tokenizers import NumberTokenizer


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
