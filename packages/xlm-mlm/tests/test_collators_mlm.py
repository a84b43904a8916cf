"""Layouts written out by hand, the distributions of the masks, and what is refused."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from xlm_mlm import (
    MLMBatch,
    MLMCollator,
    MLMExample,
    MLMLikelihoodCollator,
    MLMPromptBatch,
    MLMPromptCollator,
)

PAD, MASK, EOS, BOS = 0, 2, 3, 4


def training(*, target_length: int | None = None, mask_rate: float | None = None) -> MLMCollator:
    return MLMCollator(
        pad_id=PAD,
        mask_id=MASK,
        bos_id=BOS,
        eos_id=EOS,
        target_length=target_length,
        mask_rate=mask_rate,
    )


def likelihood(*, target_length: int | None = None, num_draws: int = 1) -> MLMLikelihoodCollator:
    return MLMLikelihoodCollator(
        pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, target_length=target_length, num_draws=num_draws
    )


def prompts(*, target_length: int | None = None, default_length: int | None = None) -> MLMPromptCollator:
    return MLMPromptCollator(
        pad_id=PAD,
        mask_id=MASK,
        bos_id=BOS,
        eos_id=EOS,
        target_length=target_length,
        default_length=default_length,
    )


EXAMPLES: list[MLMExample] = [
    {"seed": 5, "prompt_ids": torch.tensor([10, 11]), "target_ids": torch.tensor([7, 8])},
    {"seed": 6, "target_ids": torch.tensor([9])},
    {
        "seed": 7,
        "prompt_ids": torch.tensor([12]),
        "target_ids": torch.tensor([7, 8, 9]),
        "fixed": torch.tensor([False, True, False]),
    },
]


def table(tensor: Tensor) -> list[list[int]]:
    return tensor.int().tolist()


def test_rows_of_known_length() -> None:
    batch = training()(EXAMPLES)
    assert table(batch["target_ids"]) == [[10, 11, 4, 7, 8], [4, 9, 0, 0, 0], [12, 4, 7, 8, 9]]
    assert batch["attention_mask"] is not None
    assert table(batch["attention_mask"]) == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert not batch["may_end"].any()
    assert batch["num_eligible"].tolist() == [2, 1, 2]
    assert batch["num_tokens"].tolist() == [2, 1, 2]
    assert batch["models_length"].tolist() == [False] * 3


def test_rows_of_fixed_width() -> None:
    batch = training(target_length=3)(EXAMPLES)
    assert table(batch["target_ids"]) == [[10, 11, 4, 7, 8, 3], [4, 9, 3, 0, 0, 0], [12, 4, 7, 8, 9, 0]]
    assert batch["attention_mask"] is not None
    assert table(batch["attention_mask"]) == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    # The text may end anywhere in the width, but only right of the last given token.
    assert table(batch["may_end"]) == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert batch["num_eligible"].tolist() == [3, 3, 2]
    assert batch["num_tokens"].tolist() == [2, 1, 2]
    assert batch["models_length"].tolist() == [True] * 3


def test_pads_of_a_fixed_width_are_masked_like_tokens() -> None:
    batch = training(target_length=6, mask_rate=1.0)(EXAMPLES)
    assert table(batch["input_ids"]) == [
        [10, 11, 4, 2, 2, 2, 2, 2, 2],
        [4, 2, 2, 2, 2, 2, 2, 0, 0],
        [12, 4, 2, 8, 2, 2, 2, 2, 0],
    ]
    assert torch.equal(batch["masked"], batch["input_ids"] == MASK)


def test_a_given_last_token_gives_the_end() -> None:
    example: MLMExample = {
        "seed": 0,
        "target_ids": torch.tensor([7, 8, 9]),
        "fixed": torch.tensor([False, False, True]),
    }
    batch = training(target_length=6, mask_rate=1.0)([example, {**example, "fixed": ~example["fixed"]}])
    assert table(batch["input_ids"]) == [[4, 2, 2, 9, 3, 0, 0], [4, 7, 8, 2, 2, 2, 2]]
    assert batch["num_eligible"].tolist() == [2, 4]
    # The end of the first text is no longer open, but still an end.
    assert table(batch["may_end"]) == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    prompt = prompts(target_length=6)([example])
    assert table(prompt["input_ids"]) == [[4, 2, 2, 9, 3, 0, 0]]


def test_without_eos_a_fixed_width_is_filled_with_pads() -> None:
    collate = MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=None, target_length=3)
    assert table(collate(EXAMPLES[:2])["target_ids"]) == [[10, 11, 4, 7, 8, 0], [4, 9, 0, 0, 0, 0]]
    separated: MLMExample = {"seed": 0, "target_ids": torch.tensor([7, EOS, 8])}
    assert table(collate([separated])["target_ids"]) == [[4, 7, 3, 8]]


def test_likelihood_rows_have_the_same_layout() -> None:
    batch, expected = likelihood(target_length=3, num_draws=2)(EXAMPLES), training(target_length=3)(EXAMPLES)
    for key in ("target_ids", "may_end", "num_eligible", "num_tokens", "models_length"):
        assert torch.equal(batch[key], expected[key].repeat_interleave(2, 0)), key
    mask, expected_mask = batch["attention_mask"], expected["attention_mask"]
    assert mask is not None
    assert expected_mask is not None
    assert torch.equal(mask, expected_mask.repeat_interleave(2, 0))
    assert int(batch["num_draws"]) == 2


def test_prompt_rows() -> None:
    batch: MLMPromptBatch = prompts()(EXAMPLES)
    assert table(batch["input_ids"]) == [[10, 11, 4, 2, 2], [4, 2, 0, 0, 0], [12, 4, 2, 8, 2]]
    assert torch.equal(batch["masked"], batch["input_ids"] == MASK)
    assert batch["attention_mask"] is not None
    assert table(batch["attention_mask"]) == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert not batch["may_end"].any()
    assert batch["target_start"].tolist() == [3, 1, 2]


def test_prompt_rows_of_fixed_width() -> None:
    unconditional: MLMExample = {"seed": 8}
    batch = prompts(target_length=4)([*EXAMPLES, unconditional])
    assert table(batch["input_ids"]) == [
        [10, 11, 4, 2, 2, 2, 2],
        [4, 2, 2, 2, 2, 0, 0],
        [12, 4, 2, 8, 2, 2, 0],
        [4, 2, 2, 2, 2, 0, 0],
    ]
    assert table(batch["may_end"]) == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 1, 1, 1, 1, 0, 0],
    ]


def test_prompt_rows_do_not_tell_the_reference() -> None:
    other: list[MLMExample] = [
        {"seed": 5, "prompt_ids": torch.tensor([10, 11]), "target_ids": torch.tensor([9, 9])},
        {"seed": 6, "target_ids": torch.tensor([7])},
        {**EXAMPLES[2], "target_ids": torch.tensor([10, 8, 11])},
    ]
    for collate in (prompts(), prompts(target_length=4)):
        first, second = collate(other), collate(EXAMPLES)
        assert torch.equal(first["input_ids"], second["input_ids"])
        assert torch.equal(first["masked"], second["masked"])
        assert torch.equal(first["may_end"], second["may_end"])


def test_default_length_is_for_rows_without_target() -> None:
    prompt_only: MLMExample = {"seed": 0, "prompt_ids": torch.tensor([9])}
    batch = prompts(default_length=2)([prompt_only, EXAMPLES[1]])
    assert table(batch["input_ids"]) == [[9, 4, 2, 2], [4, 2, 0, 0]]
    assert not batch["may_end"].any()


def many(number: int, length: int, fixed: list[bool] | None = None) -> list[MLMExample]:
    examples: list[MLMExample] = [
        {"seed": seed, "target_ids": torch.full((length,), 7)} for seed in range(number)
    ]
    if fixed is not None:
        for example in examples:
            example["fixed"] = torch.tensor(fixed)
    return examples


def subsets(batch: MLMBatch, first: int = 1) -> Counter[tuple[int, ...]]:
    """Sets of masked cells, counted from column ``first``."""
    return Counter(tuple(row.nonzero()[:, 0].tolist()) for row in batch["masked"][:, first:])


def assert_uniform_given_count(found: Counter[tuple[int, ...]], cells: tuple[int, ...], least: int) -> None:
    """All numbers of masks from ``least`` on equally likely, and all sets of a number equally likely."""
    number = sum(found.values())
    for count in range(len(cells) + 1):
        sets = list(itertools.combinations(cells, count))
        share = 1 / (len(cells) + 1 - least) / len(sets) if count >= least else 0.0
        for chosen in sets:
            error = (share * (1 - share) / number) ** 0.5
            assert found[chosen] / number == pytest.approx(share, abs=4.5 * error), chosen
    assert sum(found[chosen] for size in range(5) for chosen in itertools.combinations(cells, size)) == number


def test_uniform_rates_make_the_number_of_masks_uniform() -> None:
    batch = training()(many(8000, 3))
    assert_uniform_given_count(subsets(batch), (0, 1, 2), least=0)
    num_masked = batch["masked"].sum(1)
    weight = torch.where(num_masked == 0, 0.0, 4 / num_masked.double())
    torch.testing.assert_close(batch.get("likelihood_weight"), weight)


def test_likelihood_masks_at_least_one_cell() -> None:
    batch = likelihood()(many(8000, 3))
    assert_uniform_given_count(subsets(batch), (0, 1, 2), least=1)
    torch.testing.assert_close(batch.get("likelihood_weight"), 3 / batch["masked"].sum(1).double())


def test_given_tokens_are_never_masked() -> None:
    fixed = [True, False, False, True, False]
    assert_uniform_given_count(subsets(training()(many(8000, 5, fixed))), (1, 2, 4), least=0)
    assert_uniform_given_count(subsets(likelihood()(many(8000, 5, fixed))), (1, 2, 4), least=1)


@pytest.mark.parametrize("mask_rate", [0.15, 0.8])
def test_fixed_rate_masks_cells_independently(mask_rate: float) -> None:
    batch = training(mask_rate=mask_rate)(many(8000, 2))
    found = subsets(batch)
    for chosen, share in {
        (): (1 - mask_rate) ** 2,
        (0,): mask_rate * (1 - mask_rate),
        (1,): mask_rate * (1 - mask_rate),
        (0, 1): mask_rate**2,
    }.items():
        assert found[chosen] / 8000 == pytest.approx(share, abs=4.5 * (share / 8000) ** 0.5)
    assert "likelihood_weight" not in batch


def test_draws_of_an_example_are_stratified() -> None:
    """With as many draws as cells each number of masks comes once; with twice as many, twice."""
    for num_draws in (4, 8):
        batch = likelihood(num_draws=num_draws)(many(50, 4))
        counts = batch["masked"].sum(1).view(50, num_draws)
        assert torch.equal(counts, (torch.arange(num_draws) * 4 // num_draws + 1).expand(50, -1))
        assert len({tuple(row.tolist()) for row in batch["masked"].view(50, -1)}) > 30, "examples mask alike"


def test_places_stratify_the_rates() -> None:
    examples = many(16, 4000)
    placed: list[MLMExample] = [{**example, "place": 48 + row} for row, example in enumerate(examples)]
    rates = training()(placed)["masked"].sum(1) / 4000
    # One rate in each sixteenth; the share of masked cells strays from its rate by less than 0.02.
    middles = (torch.arange(16) + 0.5) / 16
    assert (rates.sort().values - middles).abs().max() < 1 / 32 + 0.02
    loose = training()(examples)["masked"].sum(1) / 4000
    assert (loose.sort().values - middles).abs().max() > 1 / 32 + 0.02


def test_a_row_is_the_same_in_every_batch() -> None:
    for collate in (training(), likelihood(num_draws=1), training(target_length=4, mask_rate=0.5)):
        together = collate(EXAMPLES)
        for row, example in enumerate(EXAMPLES):
            alone = collate([example])
            length = alone["input_ids"].shape[1]
            assert torch.equal(alone["input_ids"][0], together["input_ids"][row, :length])


@pytest.mark.parametrize(
    "collate", [training(target_length=2), likelihood(target_length=2), prompts(target_length=2)]
)
def test_too_long_targets_are_refused(
    collate: MLMCollator | MLMLikelihoodCollator | MLMPromptCollator,
) -> None:
    with pytest.raises(ValueError, match="example 2 has 3 target tokens, the limit is target_length=2"):
        collate(EXAMPLES)


@pytest.mark.parametrize("token", [PAD, MASK, EOS])
def test_special_tokens_in_targets_are_refused(token: int) -> None:
    wrong: MLMExample = {"seed": 0, "target_ids": torch.tensor([7, token])}
    with pytest.raises(ValueError, match=f"example 1 holds token id {token}, which is MASK, PAD or EOS"):
        training()([EXAMPLES[1], wrong])
    # As a reference it does no harm; as a given token it does.
    assert table(prompts()([wrong])["input_ids"]) == [[4, 2, 2]]
    with pytest.raises(ValueError, match=f"token id {token}"):
        prompts()([{**wrong, "fixed": torch.tensor([False, True])}])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="empty list"):
        training()([])
    with pytest.raises(ValueError, match="'fixed' of example 0 has 1 entries for 2 target tokens"):
        training()([{**EXAMPLES[0], "fixed": torch.tensor([True])}])
    with pytest.raises(ValueError, match=r"length is unknown: give target_length.*or default_length"):
        prompts()([{"seed": 0}])


@pytest.mark.parametrize("value", [-0.1, 0.0, 1.5])
def test_mask_rates_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"mask_rate must be None or in \(0, 1\], got {value}"):
        training(mask_rate=value)


def test_lengths_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="target_length must be None or at least 1, got 0"):
        training(target_length=0)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        likelihood(num_draws=0)
    with pytest.raises(ValueError, match="default_length=3 and target_length=4"):
        prompts(target_length=4, default_length=3)
    with pytest.raises(ValueError, match="default_length must be at least 0"):
        prompts(default_length=-1)


def packed(*documents: Sequence[int]) -> MLMExample:
    lengths = torch.tensor([len(document) for document in documents])
    return {
        "seed": len(documents),
        "target_ids": torch.tensor([token for document in documents for token in document]),
        "segment_ids": torch.arange(len(documents)).repeat_interleave(lengths),
    }


def bare(*, target_length: int | None = None) -> MLMCollator:
    """Adds no special tokens."""
    return MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None, target_length=target_length)


def test_packed_blocks_hold_their_special_tokens_already() -> None:
    batch = bare()([packed([BOS, 7, EOS], [BOS, 8, 9, EOS]), packed([BOS, 10, EOS], [9, 7])])
    assert batch["target_ids"].tolist() == [
        [BOS, 7, EOS, BOS, 8, 9, EOS],
        [BOS, 10, EOS, 9, 7, PAD, PAD],
    ]
    assert batch.get("segment_ids", torch.empty(0)).tolist() == [
        [0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, -1, -1],
    ]
    assert batch["num_eligible"].tolist() == batch["num_tokens"].tolist() == [7, 5]
    assert batch["attention_mask"] is not None
    full = bare()([packed([BOS, 7, EOS], [8])])
    assert full["attention_mask"] is None, "no work on padding where there is none"


def test_blocks_that_do_not_fit_are_refused() -> None:
    block = packed([7, 8], [9])
    for adds in (training(), bare(target_length=4)):
        with pytest.raises(ValueError, match="set bos_id=None and target_length=None"):
            adds([block])
    with pytest.raises(ValueError, match="some have none"):
        bare()([block, {"seed": 0, "target_ids": torch.tensor([7])}])
    misfits: list[MLMExample] = [
        {**block, "prompt_ids": torch.tensor([7])},
        {**block, "target_ids": torch.tensor([7])},
    ]
    for wrong in misfits:
        with pytest.raises(ValueError, match="example 0 needs one entry of 'segment_ids' for each"):
            bare()([wrong])


def test_rows_for_generation_without_bos() -> None:
    collate = MLMPromptCollator(pad_id=PAD, mask_id=MASK, bos_id=None, eos_id=None, default_length=2)
    batch = collate([{"seed": 0, "prompt_ids": torch.tensor([7, 8])}, {"seed": 1}])
    assert batch["input_ids"].tolist() == [[7, 8, MASK, MASK], [MASK, MASK, PAD, PAD]]
    assert batch["target_start"].tolist() == [2, 0]
    fixed = torch.tensor([True, False])
    batch = collate([{"seed": 0, "target_ids": torch.tensor([9, 7]), "fixed": fixed}])
    assert batch["input_ids"].tolist() == [[9, MASK]]
