"""Collators: where tokens stand, how cells are masked, times and weights."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, LogLinear, NoiseSchedule, Polynomial, uniform
from xlm_mdlm import MDLMCollator, MDLMExample, MDLMLikelihoodCollator, MDLMPromptCollator

PAD, MASK, EOS, BOS = range(4)
A, B, C, D = range(4, 8)


def collator(
    *,
    schedule: NoiseSchedule | None = None,
    eos_id: int | None = EOS,
    target_length: int | None = None,
    min_time: float = 1e-3,
) -> MDLMCollator:
    return MDLMCollator(
        schedule=LogLinear() if schedule is None else schedule,
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=eos_id,
        target_length=target_length,
        min_time=min_time,
    )


def prompts(
    *, eos_id: int | None = EOS, target_length: int | None = None, default_length: int | None = None
) -> MDLMPromptCollator:
    return MDLMPromptCollator(
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=eos_id,
        target_length=target_length,
        default_length=default_length,
    )


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


EXAMPLES: list[MDLMExample] = [
    {"seed": 1, "prompt_ids": ids(D, D), "target_ids": ids(A, B)},
    {"seed": 2, "target_ids": ids(A, B, C), "fixed": torch.tensor([False, True, False])},
    {"seed": 3, "target_ids": ids()},
]


def test_rows_of_known_length() -> None:
    batch = collator()(EXAMPLES)
    assert batch["target_ids"].tolist() == [[D, D, BOS, A, B], [BOS, A, B, C, PAD], [BOS, PAD, PAD, PAD, PAD]]
    assert batch["attention_mask"] is not None
    assert batch["attention_mask"].sum(1).tolist() == [5, 4, 1]
    assert batch["num_eligible"].tolist() == batch["num_tokens"].tolist() == [2, 2, 0]
    assert not batch["may_end"].any()
    assert not batch["models_length"].any()


def test_rows_of_fixed_width() -> None:
    """EOS, then PAD; a text that fills the width has no EOS; no end left of a given token."""
    batch = collator(target_length=3)(EXAMPLES)
    assert batch["target_ids"].tolist() == [
        [D, D, BOS, A, B, EOS],
        [BOS, A, B, C, PAD, PAD],
        [BOS, EOS, PAD, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"] is not None
    assert batch["attention_mask"].sum(1).tolist() == [6, 4, 4]
    assert batch["may_end"].int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert batch["num_eligible"].tolist() == [3, 2, 3]
    assert batch["num_tokens"].tolist() == [2, 2, 0]
    assert batch["models_length"].all()
    no_eos = collator(target_length=3, eos_id=None)(EXAMPLES)
    assert no_eos["target_ids"][:, 3:].tolist() == [[A, B, PAD], [C, PAD, PAD], [PAD, PAD, PAD]]


def test_a_text_whose_last_token_is_given_ends_there() -> None:
    given: MDLMExample = {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([False, True])}
    batch = collator(target_length=4)([given])
    assert batch["target_ids"].tolist() == [[BOS, A, B, EOS, PAD]]
    assert batch["num_eligible"].tolist() == [1]
    assert prompts(target_length=4)([given])["input_ids"].tolist() == [[BOS, MASK, B, EOS, PAD]]


def test_only_cells_that_are_not_given_are_masked() -> None:
    eligible = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    seen = torch.zeros_like(eligible)
    for seed in range(60):
        batch = collator()([{**example, "seed": seed} for example in EXAMPLES])
        assert torch.equal(batch["masked"], batch["input_ids"] == MASK)
        assert torch.equal(batch["input_ids"][~batch["masked"]], batch["target_ids"][~batch["masked"]])
        seen |= batch["masked"]
    assert torch.equal(seen, eligible)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial(2.0)], ids=repr)
def test_times_weights_and_masks_belong_together(schedule: NoiseSchedule) -> None:
    """The time is read back from the noise; the weight is the schedule's, the masks are drawn at its rate."""
    rows, length = 2000, 20
    examples: list[MDLMExample] = [
        {"seed": seed, "target_ids": torch.full((length,), A)} for seed in range(rows)
    ]
    batch = collator(schedule=schedule, min_time=0.1)(examples)
    assert "noise" in batch
    alpha = (-batch["noise"]).exp()
    time = schedule.inverse(alpha)
    assert 0.1 <= float(time.min()) < 0.101
    # The noise of the polynomial schedule is cut at alpha = 1e-4.
    assert 0.989 < float(time.max()) <= 1.0 + 1e-12
    # A uniform time: its mean within 4 standard errors.
    assert float(time.mean()) == pytest.approx(0.55, abs=4 * 0.9 / math.sqrt(12 * rows))
    uncut = time < 0.98
    torch.testing.assert_close(batch["weight"][uncut], schedule.loss_weight(time)[uncut], rtol=1e-9, atol=0)
    surplus = batch["masked"].sum(1) - length * (1 - alpha)
    assert float(surplus.mean()) == pytest.approx(0.0, abs=4 * math.sqrt(length / 4 / rows))
    spread = (surplus.square() / (length * alpha * (1 - alpha)).clamp(min=1e-9))[
        (alpha > 0.05) & (alpha < 0.95)
    ]
    assert float(spread.mean()) == pytest.approx(1.0, abs=0.15), "cells are masked independently"


def test_times_are_stratified_over_the_places_of_the_stream() -> None:
    def rates(places: list[int]) -> list[float]:
        examples: list[MDLMExample] = [
            {"seed": 100 + place, "place": place, "target_ids": ids(A)} for place in places
        ]
        batch = collator(schedule=LogLinear(eps=0.0), min_time=0.0)(examples)
        assert "noise" in batch
        return (1 - (-batch["noise"]).exp()).tolist()

    batch = rates(list(range(64, 128)))
    assert sorted(int(64 * rate) for rate in batch) == list(range(64))
    assert rates([70, 99]) == [batch[6], batch[35]], "no other row enters"
    some: list[MDLMExample] = [
        {"seed": 1, "place": 0, "target_ids": ids(A)},
        {"seed": 2, "target_ids": ids(A)},
    ]
    independent = collator(schedule=LogLinear(eps=0.0), min_time=0.0)(some)
    assert "noise" in independent
    expected = uniform(torch.tensor([1, 2]), 1, step=0, stream=0).squeeze(1)
    torch.testing.assert_close(1 - (-independent["noise"]).exp(), expected)


def test_numbers_of_masks_for_the_likelihood() -> None:
    """n is uniform on 1..L and one in each stratum of the draws; the sets of n cells are uniform."""
    rows, draws = 1500, 4
    examples: list[MDLMExample] = [{"seed": seed, "target_ids": ids(A, B, C, D)} for seed in range(rows)]
    collate = MDLMLikelihoodCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, num_draws=draws)
    batch = collate(examples)
    masked = batch["masked"][:, 1:].view(rows, draws, 4)
    assert masked.sum(2).tolist() == [[1, 2, 3, 4]] * rows
    torch.testing.assert_close(batch["weight"], 4 / batch["masked"].sum(1).double())
    assert "noise" not in batch
    pairs = (masked[:, 1].int() * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(pairs, minlength=16)
    assert counts.nonzero().squeeze(1).tolist() == [3, 5, 6, 9, 10, 12]
    expected = rows / 6
    assert (counts[counts > 0] - expected).abs().max() < 4 * math.sqrt(expected)
    single = MDLMLikelihoodCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS)(examples)
    numbers = torch.bincount(single["masked"].sum(1), minlength=5)
    assert int(numbers[0]) == 0
    assert (numbers[1:] - rows / 4).abs().max() < 4 * math.sqrt(rows / 4)


def test_prompts_show_the_fixed_tokens_only() -> None:
    batch = prompts(target_length=4)([*EXAMPLES, {"seed": 4}])
    assert batch["input_ids"].tolist() == [
        [D, D, BOS, MASK, MASK, MASK, MASK],
        [BOS, MASK, B, MASK, MASK, PAD, PAD],
        [BOS, MASK, MASK, MASK, MASK, PAD, PAD],
        [BOS, MASK, MASK, MASK, MASK, PAD, PAD],
    ]
    assert batch["target_start"].tolist() == [3, 1, 1, 1]
    assert torch.equal(batch["masked"], batch["input_ids"] == MASK)
    assert batch["may_end"][1].tolist() == [False, False, False, True, True, False, False]
    known = prompts(default_length=2)([EXAMPLES[0], {"seed": 4}])
    assert known["input_ids"].tolist() == [[D, D, BOS, MASK, MASK], [BOS, MASK, MASK, PAD, PAD]]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"seed": 0, "target_ids": ids(A, A, A, A)}, "4 target tokens, the limit is target_length=3"),
        ({"seed": 0, "target_ids": ids(A, EOS)}, "holds token id 2, which is MASK, PAD or EOS"),
        ({"seed": 0, "target_ids": ids(A, MASK)}, "holds token id 1"),
        (
            {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([True])},
            "'fixed' of example 0 has 1 entries for 2 target tokens",
        ),
    ],
)
def test_examples_that_do_not_fit_are_refused(example: MDLMExample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator(target_length=3)([example])


def test_what_has_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its length is unknown: give target_length.*or default_length"):
        prompts()([{"seed": 0}])
    with pytest.raises(ValueError, match="empty list"):
        collator()([])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="target_length must be None or at least 1, got 0"):
        collator(target_length=0)
    with pytest.raises(ValueError, match=r"min_time must be in \[0, 1\), got 1.0"):
        collator(min_time=1.0)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        MDLMLikelihoodCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, num_draws=0)
    with pytest.raises(ValueError, match="None with a target_length"):
        prompts(target_length=3, default_length=3)


def packed(*documents: Sequence[int]) -> MDLMExample:
    lengths = torch.tensor([len(document) for document in documents])
    return {
        "seed": len(documents),
        "target_ids": torch.tensor([token for document in documents for token in document]),
        "segment_ids": torch.arange(len(documents)).repeat_interleave(lengths),
    }


def bare(*, target_length: int | None = None) -> MDLMCollator:
    """Adds no special tokens."""
    return MDLMCollator(
        schedule=LogLinear(),
        mask_id=MASK,
        pad_id=PAD,
        bos_id=None,
        eos_id=None,
        target_length=target_length,
    )


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
    for adds in (collator(), bare(target_length=4)):
        with pytest.raises(ValueError, match="set bos_id=None and target_length=None"):
            adds([block])
    with pytest.raises(ValueError, match="some have none"):
        bare()([block, {"seed": 0, "target_ids": torch.tensor([7])}])
    misfits: list[MDLMExample] = [
        {**block, "prompt_ids": torch.tensor([7])},
        {**block, "target_ids": torch.tensor([7])},
    ]
    for wrong in misfits:
        with pytest.raises(ValueError, match="example 0 needs one entry of 'segment_ids' for each"):
            bare()([wrong])


def test_rows_for_generation_without_bos() -> None:
    collate = MDLMPromptCollator(mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None, default_length=2)
    batch = collate([{"seed": 0, "prompt_ids": torch.tensor([7, 8])}, {"seed": 1}])
    assert batch["input_ids"].tolist() == [[7, 8, MASK, MASK], [MASK, MASK, PAD, PAD]]
    assert batch["target_start"].tolist() == [2, 0]
    fixed = torch.tensor([True, False])
    batch = collate([{"seed": 0, "target_ids": torch.tensor([9, 7]), "fixed": fixed}])
    assert batch["input_ids"].tolist() == [[9, MASK]]


def test_masks_of_a_row_without_bos_do_not_depend_on_its_time_alone() -> None:
    """Linear noise masks 0, 1, 2, ... of L cells equally often; the time and the first cell share no draw."""
    rows = 8000
    examples: list[MDLMExample] = [{"seed": seed, "target_ids": ids(A, B)} for seed in range(rows)]
    train = MDLMCollator(
        schedule=LogLinear(eps=0.0), min_time=0.0, mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None
    )
    likelihood = MDLMLikelihoodCollator(mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None)
    timed = MDLMLikelihoodCollator(
        time_conditioning=True,
        schedule=LogLinear(eps=0.0),
        mask_id=MASK,
        pad_id=PAD,
        bos_id=None,
        eos_id=None,
    )
    # Both cells, neither, each alone: 1/3, 1/3, 1/6, 1/6; with at least one mask: 1/2, 0, 1/4, 1/4.
    cases = ((train, [2, 1, 1, 2], 6), (timed, [2, 1, 1, 2], 6), (likelihood, [0, 1, 1, 2], 4))
    for collate, shares, total in cases:
        found = torch.bincount(collate(examples)["masked"].int() @ torch.tensor([1, 2]).int(), minlength=4)
        expected = torch.tensor(shares) * rows / total
        assert ((found - expected).abs() <= 4.5 * expected.sqrt()).all(), (collate, found, expected)


def test_rows_without_any_token() -> None:
    """An empty target between no special tokens, alone and beside a row with tokens."""
    empty: MDLMExample = {"seed": 0, "target_ids": ids()}
    generate = MDLMPromptCollator(default_length=0, mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None)
    score = MDLMLikelihoodCollator(num_draws=2, mask_id=MASK, pad_id=PAD, bos_id=None, eos_id=None)
    assert bare()([empty])["input_ids"].shape == (1, 0)
    assert score([empty])["input_ids"].shape == (2, 0)
    assert generate([{"seed": 0}])["input_ids"].shape == (1, 0)
    beside = bare()([empty, {"seed": 1, "target_ids": ids(A, B)}])
    assert beside["num_eligible"].tolist() == [0, 2]
    assert beside["attention_mask"] is not None
    assert beside["attention_mask"].tolist() == [[False, False], [True, True]]
