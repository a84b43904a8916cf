"""Layout of the rows, which slots are open, and the distribution of the noise."""

import math
from collections import Counter

import pytest
import torch

from xlm.modules.testing import to_list
from xlm_did import DIDBatch, DIDCollator, DIDExample, DIDPromptCollator

PAD, CLS, BOS = 0, 1, 4


def _collator(num_draws: int = 1) -> DIDCollator:
    return DIDCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, num_draws=num_draws)


def _survivors(batch: DIDBatch, row: int) -> list[int]:
    """Real tokens of a row."""
    return to_list(batch["input_ids"][row][batch["attention_mask"][row]])


def _dropped(batch: DIDBatch, row: int) -> Counter[tuple[int, int]]:
    """How often each token was dropped from each slot of a row."""
    mine = batch["target_row"] == row
    return Counter(
        zip(to_list(batch["target_slot"][mine]), to_list(batch["target_token"][mine]), strict=True)
    )


def _assert_chi_square(found: Counter[frozenset[int]], expected: dict[frozenset[int], float]) -> None:
    assert set(found) <= set(expected)
    statistic = sum((found[key] - number) ** 2 / number for key, number in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def _dropped_sets(batch: DIDBatch) -> Counter[frozenset[int]]:
    """Sets of dropped tokens, the tokens of each target being distinct."""
    sets: dict[int, set[int]] = {row: set() for row in range(len(batch["input_ids"]))}
    for row, token in zip(to_list(batch["target_row"]), to_list(batch["target_token"]), strict=True):
        sets[row].add(token)
    return Counter(frozenset(tokens) for tokens in sets.values())


def _distribution_of_subsets(tokens: range, rows: int) -> dict[frozenset[int], float]:
    """Expected numbers: N uniform on 0..L, then each of C(L, N) subsets."""
    size = len(tokens)
    subsets = [
        frozenset(token for bit, token in enumerate(tokens) if code >> bit & 1) for code in range(2**size)
    ]
    return {subset: rows / (size + 1) / math.comb(size, len(subset)) for subset in subsets}


def test_number_and_subset_are_uniform() -> None:
    rows = 8_000
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(rows)]
    batch = _collator()(examples)
    assert torch.equal(torch.bincount(batch["target_row"], minlength=rows), batch["num_dropped"])
    _assert_chi_square(_dropped_sets(batch), _distribution_of_subsets(range(7, 11), rows))


def test_fixed_tokens_are_never_dropped() -> None:
    rows = 5_000
    fixed = torch.tensor([True, False, False, True, False])
    target = torch.tensor([20, 7, 8, 21, 9])
    batch = _collator()([{"seed": seed, "target_ids": target, "fixed": fixed} for seed in range(rows)])
    assert to_list(batch["num_missing"]) == [3] * rows
    _assert_chi_square(_dropped_sets(batch), _distribution_of_subsets(range(7, 10), rows))


def test_stratified_draws_cover_every_number_once() -> None:
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(30)]
    batch = _collator(num_draws=5)(examples)
    assert batch["input_ids"].shape[0] == 150
    assert torch.equal(batch["num_dropped"].view(30, 5), torch.arange(5).expand(30, 5))
    assert int(batch["num_draws"]) == 5


def test_stratified_draws_are_unbiased() -> None:
    """Also where the strata cut through a number: 3 draws over 0..4."""
    rows = 8_000
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(rows)]
    drawn = _collator(num_draws=3)(examples)["num_dropped"]
    found = torch.bincount(drawn, minlength=5) / (3 * rows)
    assert torch.allclose(found, torch.full((5,), 0.2), atol=0.008)
    # Draw k has its N in the k-th third of the distribution.
    assert to_list(drawn.view(rows, 3).amin(0)) == [0, 1, 3]
    assert to_list(drawn.view(rows, 3).amax(0)) == [1, 3, 4]


def test_draws_of_an_example_drop_independent_subsets() -> None:
    """Of 3 tokens, one is dropped in draw 0 and two in draw 1: it is among them with probability 2/3."""
    rows = 6_000
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 10)} for seed in range(rows)]
    batch = _collator(num_draws=2)(examples)
    sets: dict[int, set[int]] = {row: set() for row in range(2 * rows)}
    for row, token in zip(to_list(batch["target_row"]), to_list(batch["target_token"]), strict=True):
        sets[row].add(token)
    pairs = [(sets[2 * row], sets[2 * row + 1]) for row in range(rows)]
    chosen = [one <= two for one, two in pairs if (len(one), len(two)) == (1, 2)]
    assert len(chosen) > rows / 5
    error = math.sqrt(2 / 9 / len(chosen))
    assert sum(chosen) / len(chosen) == pytest.approx(2 / 3, abs=4 * error)


def test_dropped_tokens_put_back_give_the_text() -> None:
    """Ascending targets, so that the order of the tokens of one slot is known."""
    examples: list[DIDExample] = [
        {
            "seed": seed,
            "target_ids": torch.arange(10, 10 + seed % 13),
            "prompt_ids": torch.arange(7, 7 + seed % 3),
        }
        for seed in range(200)
    ]
    batch = _collator()(examples)
    for row, example in enumerate(examples):
        dropped = _dropped(batch, row)
        assert dropped.total() == int(batch["num_dropped"][row])
        text: list[int] = []
        for column, token in enumerate(_survivors(batch, row)):
            text += [token, *sorted(token for (slot, token) in dropped if slot == column)]
        assert "prompt_ids" in example
        assert "target_ids" in example
        assert text == [CLS, *to_list(example["prompt_ids"]), BOS, *to_list(example["target_ids"])]


def test_times_follow_their_distribution_for_each_number_deleted() -> None:
    """Beta(n, L - n + 1), and Beta(1, L + 1) for n = 0: Kolmogorov's distance; alike for all subsets."""
    rows, size = 6_000, 3
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 10)} for seed in range(rows)]
    batch = _collator()(examples)
    time = batch["time"]
    assert time.dtype == torch.float64
    assert bool(((time > 0) & (time < 1)).all())
    for n in range(size + 1):
        found = time[batch["num_dropped"] == n].sort().values
        # P(u <= t) is the probability that at least n of L uniform numbers (one of L + 1) are below t.
        if n == 0:
            expected = 1 - (1 - found) ** (size + 1)
        else:
            terms = [math.comb(size, k) * found**k * (1 - found) ** (size - k) for k in range(n, size + 1)]
            expected = torch.stack(terms).sum(0)
        empirical = (torch.arange(len(found)) + 0.5) / len(found)
        assert float((expected - empirical).abs().max()) < 1.95 / math.sqrt(len(found))
    one = batch["num_dropped"] == 1
    token = torch.zeros(rows, dtype=torch.int64).scatter(0, batch["target_row"], batch["target_token"])
    means = [float(time[one & (token == dropped)].mean()) for dropped in range(7, 10)]
    assert means == pytest.approx([1 / 4] * 3, abs=0.035)


def test_stratified_draws_keep_the_distribution_of_times() -> None:
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(2000)]
    batch = _collator(num_draws=5)(examples)
    means = [float(batch["time"].view(-1, 5)[:, n].mean()) for n in range(5)]
    assert means == pytest.approx([1 / 6, 1 / 5, 2 / 5, 3 / 5, 4 / 5], abs=0.02)


def test_what_may_be_missing_is_what_the_limit_leaves() -> None:
    collate = DIDCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=9)
    fixed = torch.tensor([True, False, False, True])
    examples: list[DIDExample] = [
        {"seed": seed, "target_ids": torch.arange(7, 11), "fixed": fixed} for seed in range(20)
    ]
    batch = collate(examples)
    assert torch.equal(batch["most_missing"], 9 - 4 + batch["num_dropped"])
    assert bool((_collator()(examples)["most_missing"] > 10**6).all())


def test_slots_of_infilling() -> None:
    """7 [8] [9] 10 11 [12]: in brackets what is missing."""
    target = torch.arange(7, 13)
    fixed = torch.tensor([True, False, False, True, True, False])
    examples: list[DIDExample] = [
        {"seed": seed, "prompt_ids": torch.tensor([20]), "target_ids": target, "fixed": fixed}
        for seed in range(40)
    ]
    batch = _collator()(examples)
    # Open right of a token: of 7 and 11 since 8 and 12 come next, of 8, 9 and 12 since they are not fixed.
    is_open = {CLS: False, 20: False, BOS: False, 7: True, 8: True, 9: True, 10: False, 11: True, 12: True}
    for row in range(40):
        survivors = _survivors(batch, row)
        slots = to_list(batch["open_slots"][row].long())
        assert slots == [int(is_open[token]) for token in survivors] + [0] * (len(slots) - len(survivors))
        assert all(slots[slot] for slot, _ in _dropped(batch, row))


@pytest.mark.parametrize(
    ("example", "ids", "slots", "budget"),
    [
        ({"seed": 0}, [CLS, BOS], [0, 1], 5),
        ({"seed": 0, "target_ids": torch.tensor([7, 8])}, [CLS, BOS], [0, 1], 5),
        ({"seed": 0, "prompt_ids": torch.tensor([9, 9])}, [CLS, 9, 9, BOS], [0, 0, 0, 1], 5),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8, 9]), "fixed": torch.tensor([False, True, False])},
            [CLS, BOS, 8],
            [0, 1, 1],
            4,
        ),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8, 9]), "fixed": torch.tensor([True, False, True])},
            [CLS, BOS, 7, 9],
            [0, 0, 1, 0],
            3,
        ),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True, True])},
            [CLS, BOS, 7, 8],
            [0, 0, 0, 0],
            3,
        ),
    ],
    ids=["nothing", "reference_only", "prompt", "missing_at_both_ends", "missing_inside", "nothing_missing"],
)
def test_prompts_hold_the_fixed_tokens(
    example: DIDExample, ids: list[int], slots: list[int], budget: int
) -> None:
    collate = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=5)
    longer: DIDExample = {"seed": 1, "prompt_ids": torch.tensor([9] * 6)}
    batch = collate([example, longer])
    padding = 8 - len(ids)
    assert to_list(batch["input_ids"][0]) == ids + [PAD] * padding
    assert to_list(batch["attention_mask"][0].long()) == [1] * len(ids) + [0] * padding
    assert to_list(batch["open_slots"][0].long()) == slots + [0] * padding
    assert to_list(batch["target_start"]) == [ids.index(BOS) + 1, 8]
    assert to_list(batch["budget"]) == [budget, 5]


def test_rows_are_the_same_in_every_batch() -> None:
    examples: list[DIDExample] = [
        {"seed": seed, "target_ids": torch.arange(7, 9 + seed)} for seed in range(9)
    ]
    together = _collator(num_draws=2)(examples)
    for row, example in enumerate(examples):
        alone = _collator(num_draws=2)([example])
        for draw in range(2):
            assert _survivors(together, 2 * row + draw) == _survivors(alone, draw)
            assert _dropped(together, 2 * row + draw) == _dropped(alone, draw)


def test_what_cannot_be_collated_is_refused() -> None:
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        _collator(num_draws=0)
    with pytest.raises(ValueError, match="empty list"):
        _collator()([])
    with pytest.raises(ValueError, match="'fixed' of example 0 has 1 entries for 2 target tokens"):
        _collator()([{"seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True])}])
    block: DIDExample = {"seed": 0, "target_ids": torch.tensor([7, 8]), "segment_ids": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="cannot keep the documents of a packed block apart"):
        _collator()([block])
    limited = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)
    reference: DIDExample = {"seed": 1, "target_ids": torch.arange(7, 11)}
    assert to_list(limited([reference])["budget"]) == [3]
    with pytest.raises(ValueError, match=r"example 1 has 4 target tokens.*max_length=3"):
        limited([{"seed": 0}, {**reference, "fixed": torch.tensor([True, False, False, False])}])
