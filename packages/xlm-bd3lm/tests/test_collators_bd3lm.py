"""Collators: where tokens stand, how the cells of blocks are masked, levels and weights."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, LogLinear, NoiseSchedule, row_seeds
from xlm_bd3lm import BD3LMCollator, BD3LMExample, BD3LMLikelihoodCollator, BD3LMPromptCollator
from xlm_bd3lm.noise_bd3lm import levels_of_blocks

PAD, MASK, EOS, BOS = range(4)
A, B, C, D = range(4, 8)
IDS: dict[str, Any] = {"mask_id": MASK, "pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
BARE: dict[str, Any] = IDS | {"bos_id": None, "eos_id": None}


def collator(**options: Any) -> BD3LMCollator:
    return BD3LMCollator(**options)


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


EXAMPLES: list[BD3LMExample] = [
    {"seed": 1, "prompt_ids": ids(D, D), "target_ids": ids(A, B)},
    {"seed": 2, "target_ids": ids(A, B, C), "fixed": torch.tensor([False, True, False])},
    {"seed": 3, "target_ids": ids()},
]


def test_rows_of_given_length() -> None:
    """The last block may be shorter; the clean stream has all blocks but a row's last."""
    batch = BD3LMCollator(**IDS, block_length=2)(EXAMPLES)
    assert batch["target_ids"].tolist() == [[A, B, PAD], [A, B, C], [PAD, PAD, PAD]]
    assert batch["cell_blocks"].tolist() == [[1, 1, -1], [1, 1, 2], [-1, -1, -1]]
    assert batch["clean_ids"].tolist() == [[D, D, BOS], [BOS, A, B], [BOS, PAD, PAD]]
    assert batch["clean_blocks"].tolist() == [[0, 0, 0], [0, 1, 1], [0, -1, -1]]
    assert batch["prompt_length"].tolist() == [3, 1, 1]
    assert batch["num_eligible"].tolist() == batch["num_tokens"].tolist() == [2, 2, 0]
    assert not batch["may_end"].any()
    assert not batch["models_length"].any()


def test_rows_that_end() -> None:
    """EOS, then PAD up to the end of its block; a full block is followed by one with EOS."""
    batch = BD3LMCollator(**IDS, block_length=2, max_target_length=3)(EXAMPLES)
    assert batch["target_ids"].tolist() == [[A, B, EOS, PAD], [A, B, C, EOS], [EOS, PAD, PAD, PAD]]
    assert batch["cell_blocks"].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, -1, -1]]
    assert batch["may_end"].int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert batch["may_pad"].int().tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert batch["num_eligible"].tolist() == [4, 3, 2]
    assert batch["num_tokens"].tolist() == [2, 2, 0]
    assert batch["models_length"].all()
    single = BD3LMCollator(**IDS, block_length=1, max_target_length=3)(EXAMPLES)
    assert single["target_ids"].tolist() == [[A, B, EOS, PAD], [A, B, C, EOS], [EOS, PAD, PAD, PAD]]
    assert single["cell_blocks"].tolist() == [[1, 2, 3, -1], [1, 2, 3, 4], [1, -1, -1, -1]]
    assert not single["may_pad"].any()


def test_a_text_whose_last_token_is_given_ends_there() -> None:
    given: BD3LMExample = {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([False, True])}
    batch = BD3LMCollator(**IDS, block_length=2, max_target_length=4)([given])
    assert batch["target_ids"].tolist() == [[A, B, EOS, PAD]]
    assert batch["num_eligible"].tolist() == [1]
    prompts = BD3LMPromptCollator(**IDS, block_length=2, max_target_length=6)([given, {"seed": 1}])
    assert prompts["input_ids"].tolist() == [[MASK, B, EOS, PAD, PAD, PAD], [MASK] * 6]
    assert prompts["attention_mask"].sum(1).tolist() == [4, 6]


def test_only_cells_that_are_not_given_are_masked() -> None:
    eligible = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]]).bool()
    time: dict[str, Any] = {"noise": "time", "schedule": LogLinear()}
    for noise in ({}, time):
        seen = torch.zeros_like(eligible)
        collate = BD3LMCollator(**IDS, block_length=2, **noise)
        for seed in range(60):
            batch = collate([{**example, "seed": seed} for example in EXAMPLES])
            assert torch.equal(batch["masked"], batch["input_ids"] == MASK)
            assert torch.equal(batch["input_ids"][~batch["masked"]], batch["target_ids"][~batch["masked"]])
            seen |= batch["masked"]
        assert torch.equal(seen, eligible)


def test_numbers_of_masks() -> None:
    """n is uniform on 1..D_b in each block; the sets of n cells are uniform; the weight is D_b / n."""
    rows = 3000
    examples: list[BD3LMExample] = [
        {"seed": seed, "target_ids": ids(A, B, C, D, A, B, C), "fixed": torch.arange(7) == 1}
        for seed in range(rows)
    ]
    batch = BD3LMCollator(**IDS, block_length=4)(examples)
    masked = torch.nn.functional.pad(batch["masked"], (0, 1)).view(rows, 2, 4)
    numbers = masked.sum(2)
    for block in range(2):
        counts = torch.bincount(numbers[:, block], minlength=4)
        assert int(counts[0]) == 0
        assert (counts[1:] - rows / 3).abs().max() < 4 * math.sqrt(rows / 3)
    assert not masked[:, 0, 1].any()
    sets = (masked[numbers[:, 0] == 2, 0].int() @ torch.tensor([1, 0, 2, 4]).int()).bincount(minlength=8)
    assert sets.nonzero().squeeze(1).tolist() == [3, 5, 6]
    assert (sets[sets > 0] - rows / 9).abs().max() < 4 * math.sqrt(rows / 9)
    number = numbers[batch["masked_row"], batch["masked_column"] // 4]
    torch.testing.assert_close(batch["weight"], 3 / number.double())
    assert batch["masked_level"].tolist() == [{1: 1, 2: 2, 3: 3}[int(n)] for n in number]


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=repr)
def test_times_weights_and_masks_belong_together(schedule: NoiseSchedule) -> None:
    """The time of a block is read back from its weight; the masks are drawn at its rate."""
    rows, length = 1500, 20
    examples: list[BD3LMExample] = [
        {"seed": seed, "target_ids": torch.full((2 * length,), A)} for seed in range(rows)
    ]
    collate = BD3LMCollator(**IDS, block_length=length, noise="time", schedule=schedule, min_time=0.1)
    batch = collate(examples)
    weight = torch.zeros(rows, 2 * length, dtype=torch.float64)
    weight[batch["masked"]] = batch["weight"]
    weight = weight.view(rows, 2, length).amax(2)
    grid = torch.linspace(0.1, 1.0, 20001, dtype=torch.float64)
    at = torch.searchsorted(schedule.loss_weight(grid).neg(), weight.neg().flatten()).clamp(max=20000)
    time = grid[at].view(rows, 2)
    has_masks = batch["masked"].view(rows, 2, length).any(2)
    assert has_masks.double().mean() > 0.9
    rate = 1 - schedule.alpha(time)
    surplus = (batch["masked"].view(rows, 2, length).sum(2) - length * rate)[has_masks & (time > 0.3)]
    assert float(surplus.mean()) == pytest.approx(0.0, abs=4 * math.sqrt(length / 4 / len(surplus)))
    assert float(time[has_masks].min()) >= 0.1


def assert_uniform(levels: Tensor) -> None:
    """Kolmogorov-Smirnov at the level of 0.1 %."""
    ordered = levels.sort().values
    steps = torch.arange(len(ordered), dtype=torch.float64) / len(ordered)
    distance = float((ordered - steps).abs().max()) + 1 / len(ordered)
    assert distance < 1.95 / math.sqrt(len(ordered))


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_block_has_uniform_levels_whatever_the_batch(rows: int) -> None:
    """By themselves; those of a row lie one in each of equal parts, and no block always has the same part."""
    num_blocks, batches = torch.tensor([5, 3, 5, 1, 4, 5, 2, 5])[:rows], 3000 // rows
    columns = torch.arange(5)
    blocks = torch.where(columns < num_blocks.unsqueeze(1), 1 + columns, -1).repeat(batches, 1)
    seeds = row_seeds(7, 0, torch.arange(rows * batches))
    first = torch.rand(rows * batches, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = levels_of_blocks(first, seeds, blocks)
    assert ((levels > 0) & (levels < 1)).all()
    by_row = levels.view(batches, rows, 5)
    for row, number in enumerate(num_blocks.tolist()):
        for block in range(number):
            assert_uniform(by_row[:, row, block])
        parts = (by_row[:, row, :number] * number).long()
        # One level in each of M equal parts of the circle: at most two in one of (0, 1).
        assert (by_row[:, row, :number].sort(dim=1).values.diff(dim=1) > 1 / number - 1e-9).all()
        if number > 1:
            assert torch.bincount(parts[:, 0], minlength=number).min() > 0
            # The order is random: the second block may be any number of parts ahead of the first.
            ahead = ((by_row[:, row, 1] - by_row[:, row, 0]) % 1 * number).round().long()
            assert torch.bincount(ahead, minlength=number)[1:].min() > 0


def test_levels_follow_the_places_of_the_stream() -> None:
    """Rows of one block at 64 places in succession: one time in each of 64 equal parts."""
    places = range(64, 128)
    examples: list[BD3LMExample] = [
        {"seed": 100 + place, "place": place, "target_ids": torch.full((50,), A)} for place in places
    ]
    collate = BD3LMCollator(**IDS, block_length=50, noise="time", schedule=LogLinear(0.0), min_time=0.0)
    batch = collate(examples)
    times = torch.zeros(64, dtype=torch.float64)
    times[batch["masked_row"]] = 1 / batch["weight"]
    has_masks = batch["masked"].any(1)
    strata = (64 * times[has_masks]).long().tolist()
    assert len(strata) == len(set(strata)) > 58


def test_prompts_show_the_fixed_tokens_only() -> None:
    """All blocks that the limit reaches; a text is cut at the limit inside one."""
    collate = BD3LMPromptCollator(**IDS, block_length=2, max_target_length=3)
    batch = collate([*EXAMPLES, {"seed": 4}])
    assert batch["input_ids"].tolist() == [[MASK] * 4, [MASK, B, MASK, MASK], [MASK] * 4, [MASK] * 4]
    assert batch["prompt_ids"].tolist() == [[D, D, BOS], [BOS, PAD, PAD], [BOS, PAD, PAD], [BOS, PAD, PAD]]
    assert batch["prompt_mask"].sum(1).tolist() == [3, 1, 1, 1]
    assert batch["max_length"].tolist() == [3] * 4
    assert batch["may_end"].int().tolist() == [[1] * 4, [0, 0, 1, 1], [1] * 4, [1] * 4]
    assert torch.equal(batch["masked"], batch["input_ids"] == MASK)
    known = BD3LMPromptCollator(**IDS, block_length=2, default_length=3)([EXAMPLES[0], {"seed": 4}])
    assert known["input_ids"].tolist() == [[MASK, MASK, PAD], [MASK, MASK, MASK]]
    full = BD3LMPromptCollator(**BARE, block_length=2, max_target_length=3)([{"seed": 4}])
    assert full["input_ids"].tolist() == [[MASK, MASK, MASK]]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"seed": 0, "target_ids": ids(A, A, A, A)}, "4 target tokens, the limit is max_target_length=3"),
        ({"seed": 0, "target_ids": ids(A, EOS)}, "holds token id 2, which is MASK, PAD or EOS"),
        ({"seed": 0, "target_ids": ids(A, MASK)}, "holds token id 1"),
        (
            {"seed": 0, "target_ids": ids(A, B), "fixed": torch.tensor([True])},
            "'fixed' of example 0 has 1 entries for 2 target tokens",
        ),
    ],
)
def test_examples_that_do_not_fit_are_refused(example: BD3LMExample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BD3LMCollator(**IDS, block_length=2, max_target_length=3)([example])


def test_what_has_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its length is unknown: give max_target_length.*or default_length"):
        BD3LMPromptCollator(**IDS, block_length=2)([{"seed": 0}])
    with pytest.raises(ValueError, match="empty list"):
        BD3LMCollator(**IDS, block_length=2)([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 0}, "block_length must be at least 1, got 0"),
        ({"max_target_length": 0}, "max_target_length must be None or at least 1, got 0"),
        ({"min_time": 1.0}, r"min_time must be in \[0, 1\), got 1.0"),
        ({"clip": (0.5, 0.5)}, r"clip must be None or two rising numbers in \[0, 1\]"),
        ({"noise": "time"}, "noise='time' needs a schedule"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator(**{**IDS, "block_length": 2, **options})


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        BD3LMLikelihoodCollator(**IDS, block_length=2, num_draws=0)
    with pytest.raises(ValueError, match="None with EOS and max_target_length"):
        BD3LMPromptCollator(**IDS, block_length=2, max_target_length=3, default_length=3)


def packed(*documents: Sequence[int]) -> BD3LMExample:
    lengths = torch.tensor([len(document) for document in documents])
    return {
        "seed": len(documents),
        "target_ids": torch.tensor([token for document in documents for token in document]),
        "segment_ids": torch.arange(len(documents)).repeat_interleave(lengths),
    }


def test_packed_blocks_hold_their_special_tokens_already() -> None:
    collate = BD3LMCollator(**BARE, block_length=4)
    batch = collate([packed([BOS, 7, EOS], [BOS, 8, 9, EOS]), packed([BOS, 10, EOS], [9, 7])])
    assert batch["target_ids"].tolist() == [[BOS, 7, EOS, BOS, 8, 9, EOS], [BOS, 10, EOS, 9, 7, PAD, PAD]]
    assert batch.get("cell_segments", ids()).tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, -1, -1]]
    assert batch.get("clean_segments", ids()).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]
    assert batch["num_eligible"].tolist() == batch["num_tokens"].tolist() == [7, 5]
    with_end = collator(**{**BARE, "eos_id": EOS}, block_length=2, max_target_length=4)
    for adds in (BD3LMCollator(**IDS, block_length=4), with_end):
        with pytest.raises(ValueError, match="set bos_id=None and eos_id=None"):
            adds([packed([7, 8], [9])])


def test_rows_without_any_token() -> None:
    """An empty target between no special tokens, alone and beside a row with tokens."""
    empty: BD3LMExample = {"seed": 0, "target_ids": ids()}
    assert BD3LMCollator(**BARE, block_length=2)([empty])["input_ids"].shape == (1, 0)
    score = BD3LMLikelihoodCollator(**BARE, block_length=2, num_draws=2)
    assert score([empty])["input_ids"].shape == (2, 0)
    generate = BD3LMPromptCollator(**BARE, block_length=2, default_length=0)
    assert generate([{"seed": 0}])["input_ids"].shape == (1, 0)
    beside = score([empty, {"seed": 1, "target_ids": ids(A, B)}])
    assert beside["num_eligible"].tolist() == [0, 0, 2, 2]
