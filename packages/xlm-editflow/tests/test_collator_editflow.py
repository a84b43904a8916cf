"""Layout of the rows, which slots are open, what is editable, and the distribution of the noise."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from xlm.modules.testing import to_list
from xlm_editflow import (
    Corrupted,
    EditFlowBatch,
    EditFlowCollator,
    EditFlowExample,
    EditFlowPromptCollator,
    Empty,
    Prompt,
    RandomTokens,
)
from xlm_editflow.sources_editflow import Source

PAD, BOS = 0, 4
NOISE = RandomTokens(max_tokens=3, vocab_size=12, suppressed_ids=range(7))
MISTAKES = Corrupted(vocab_size=20, suppressed_ids=range(7), deleted=0.2, substituted=0.3, inserted=0.1)


def collator(num_draws: int = 1, **options: Any) -> EditFlowCollator:
    return EditFlowCollator(pad_id=PAD, bos_id=BOS, num_draws=num_draws, **options)


def real_tokens(batch: EditFlowBatch, row: int) -> list[int]:
    return to_list(batch["input_ids"][row][batch["attention_mask"][row]])


def completed(batch: EditFlowBatch, row: int) -> list[int]:
    """The row after all edits that remain, as an independent program makes them from the labels."""
    ids = [[token] for token in real_tokens(batch, row)]
    for at in ((batch["delete_row"] == row).nonzero().squeeze(1)).tolist():
        ids[int(batch["delete_column"][at])][0] = -1
    inserted: dict[int, list[int]] = {}
    for at in ((batch["target_row"] == row).nonzero().squeeze(1)).tolist():
        column, token = int(batch["target_column"][at]), int(batch["target_token"][at])
        if int(batch["target_operation"][at]) == 0:
            inserted.setdefault(column, []).append(token)
        else:
            ids[column][0] = token
    for column, tokens in inserted.items():
        ids[column] += tokens
    return [token for column in ids for token in column if token >= 0]


@pytest.mark.parametrize("source", [Empty(), NOISE, MISTAKES, Prompt()])
@pytest.mark.parametrize("alignment", ["optimal", "left", "disjoint"])
def test_the_edits_that_remain_lead_to_the_target(source: Source, alignment: str) -> None:
    examples: list[EditFlowExample] = [
        {
            "seed": seed,
            "target_ids": torch.arange(10, 10 + seed % 9),
            "prompt_ids": torch.arange(7, 7 + seed % 4),
        }
        for seed in range(60)
    ]
    batch = collator(source=source, alignment=alignment)(examples)
    for row, example in enumerate(examples):
        assert "prompt_ids" in example
        assert "target_ids" in example
        expected = [*to_list(example["prompt_ids"]), BOS, *to_list(example["target_ids"])]
        assert completed(batch, row) == expected
        start = len(example["prompt_ids"]) + 1
        assert int(batch["target_start"][row]) == start
        size = len(real_tokens(batch, row))
        assert to_list(batch["open_slots"][row].nonzero().squeeze(1)) == list(range(start - 1, size))
        assert to_list(batch["editable"][row].nonzero().squeeze(1)) == list(range(start, size))
    # Each token that remains to be written has the cell of its place.
    slots = list(zip(to_list(batch["insert_row"]), to_list(batch["insert_column"]), strict=True))
    places = list(zip(to_list(batch["substitute_row"]), to_list(batch["substitute_column"]), strict=True))
    assert slots == sorted(set(slots))
    assert places == sorted(set(places))
    labels = (batch["target_row"], batch["target_column"], batch["target_cell"], batch["target_operation"])
    for row, column, cell, operation in zip(*map(to_list, labels), strict=True):
        assert (slots + places)[cell] == (row, column)
        assert (cell < len(slots)) == (operation == 0)
    is_substitution = batch["target_operation"] == 2
    place = batch["target_row"][is_substitution], batch["target_column"][is_substitution]
    assert (batch["input_ids"][place] != batch["target_token"][is_substitution]).all()
    remaining = torch.bincount(batch["target_row"], minlength=60) + torch.bincount(
        batch["delete_row"], minlength=60
    )
    assert torch.equal(remaining, batch["num_remaining"])


def test_number_and_subset_are_uniform() -> None:
    """r ~ U{0..4}, then each of the subsets of four insertions."""
    rows = 5_000
    examples: list[EditFlowExample] = [
        {"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(rows)
    ]
    batch = collator()(examples)
    sets: list[set[int]] = [set() for _ in range(rows)]
    for row, token in zip(to_list(batch["target_row"]), to_list(batch["target_token"]), strict=True):
        sets[row].add(token)
    found = Counter(map(frozenset, sets))
    assert len(found) == 16
    statistic = sum(
        (number - rows / 5 / math.comb(4, len(subset))) ** 2 / (rows / 5 / math.comb(4, len(subset)))
        for subset, number in found.items()
    )
    assert statistic < 15 + 4 * math.sqrt(30)
    assert torch.equal(batch["num_edits"], torch.full((rows,), 4))


def test_times_follow_their_distribution_for_each_number_of_edits() -> None:
    """Beta(r, D - r + 1), and Beta(1, D + 1) for r = 0: Kolmogorov's distance; D = 3 substitutions."""
    rows, size = 5_000, 3
    example: EditFlowExample = {
        "seed": 0, "prompt_ids": torch.arange(10, 13), "target_ids": torch.arange(7, 10)
    }  # fmt: skip
    batch = collator(source=Prompt())([{**example, "seed": seed} for seed in range(rows)])
    time = batch["time"]
    assert to_list(batch["num_edits"]) == [size] * rows
    assert bool(((time > 0) & (time < 1)).all())
    for r in range(size + 1):
        found = time[batch["num_remaining"] == r].sort().values
        # P(u <= t) is the probability that at least r of D uniform numbers (one of D + 1) are below t.
        if r == 0:
            expected = 1 - (1 - found) ** (size + 1)
        else:
            terms = [math.comb(size, k) * found**k * (1 - found) ** (size - k) for k in range(r, size + 1)]
            expected = torch.stack(terms).sum(0)
        empirical = (torch.arange(len(found)) + 0.5) / len(found)
        assert float((expected - empirical).abs().max()) < 1.95 / math.sqrt(len(found))


def test_stratified_draws_cover_every_number_once_and_have_sources_of_their_own() -> None:
    examples: list[EditFlowExample] = [
        {"seed": seed, "target_ids": torch.arange(7, 11)} for seed in range(30)
    ]
    batch = collator(num_draws=5)(examples)
    assert torch.equal(batch["num_remaining"].view(30, 5), torch.arange(5).expand(30, 5))
    batch = collator(num_draws=2, source=NOISE)(examples)
    assert int(batch["num_draws"]) == 2
    edits = batch["num_edits"].view(30, 2)
    assert int((edits[:, 0] != edits[:, 1]).sum()) > 5


def test_infilling_keeps_given_tokens_and_draws_a_source_for_each_stretch() -> None:
    """7 [8] [9] 10 11 [12]: in brackets what is missing."""
    target = torch.arange(7, 13)
    fixed = torch.tensor([True, False, False, True, True, False])
    noise = RandomTokens(max_tokens=3, vocab_size=20, suppressed_ids=range(13))
    example: EditFlowExample = {
        "seed": 0, "prompt_ids": torch.tensor([20]), "target_ids": target, "fixed": fixed
    }  # fmt: skip
    examples: list[EditFlowExample] = [{**example, "seed": seed} for seed in range(60)]
    batch = collator(source=noise)(examples)
    is_open = {20: False, BOS: False, 7: True, 10: False, 11: True}
    sizes = Counter[tuple[int, int]]()
    for row in range(60):
        tokens = real_tokens(batch, row)
        assert completed(batch, row) == [20, BOS, *to_list(target)]
        for column, token in enumerate(tokens):
            assert bool(batch["open_slots"][row, column]) == is_open.get(token, True)
            assert bool(batch["editable"][row, column]) == (token not in is_open)
    assert to_list(batch["num_missing"]) == [3] * 60
    collate = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=9, source=noise)
    prompts = collate(examples)
    for row in range(60):
        tokens = to_list(prompts["input_ids"][row][prompts["attention_mask"][row]])
        assert [token for token in tokens if token in is_open] == [20, BOS, 7, 10, 11]
        assert tokens.index(11) == tokens.index(10) + 1
        sizes[tokens.index(10) - tokens.index(7) - 1, len(tokens) - tokens.index(11) - 1] += 1
        for column, token in enumerate(tokens):
            assert bool(prompts["open_slots"][row, column]) == is_open.get(token, True)
            assert bool(prompts["editable"][row, column]) == (token not in is_open)
    assert len(sizes) > 8  # both stretches have lengths of their own
    assert to_list(prompts["limit"]) == [9] * 60


@pytest.mark.parametrize(
    ("example", "ids", "slots"),
    [
        ({"seed": 0}, [BOS], [1]),
        ({"seed": 0, "target_ids": torch.tensor([7, 8])}, [BOS], [1]),
        ({"seed": 0, "prompt_ids": torch.tensor([9, 9])}, [9, 9, BOS], [0, 0, 1]),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8, 9]), "fixed": torch.tensor([False, True, False])},
            [BOS, 8],
            [1, 1],
        ),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8, 9]), "fixed": torch.tensor([True, False, True])},
            [BOS, 7, 9],
            [0, 1, 0],
        ),
        (
            {"seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True, True])},
            [BOS, 7, 8],
            [0, 0, 0],
        ),
    ],
    ids=["nothing", "reference_only", "prompt", "missing_at_both_ends", "missing_inside", "nothing_missing"],
)
def test_prompts_hold_the_fixed_tokens(example: EditFlowExample, ids: list[int], slots: list[int]) -> None:
    collate = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=5)
    longer: EditFlowExample = {"seed": 1, "prompt_ids": torch.tensor([9] * 6)}
    batch = collate([example, longer])
    padding = 7 - len(ids)
    assert to_list(batch["input_ids"][0]) == ids + [PAD] * padding
    assert to_list(batch["attention_mask"][0].long()) == [1] * len(ids) + [0] * padding
    assert to_list(batch["open_slots"][0].long()) == slots + [0] * padding
    assert to_list(batch["target_start"]) == [ids.index(BOS) + 1, 7]
    assert not bool(batch["editable"].any())


def test_sources_have_their_distributions() -> None:
    rows, target = 4_000, torch.tensor([7, 8, 9])
    seeds = torch.arange(rows)
    found = NOISE([target] * rows, [target] * rows, seeds)
    sizes = Counter(map(len, found))
    assert all(sizes[size] / rows == pytest.approx(1 / 4, abs=0.03) for size in range(4))
    tokens = Counter(torch.cat(found).tolist())
    assert set(tokens) == set(range(7, 12))
    assert all(tokens[token] / tokens.total() == pytest.approx(1 / 5, abs=0.03) for token in tokens)

    only = Corrupted(vocab_size=12, suppressed_ids=range(7), substituted=0.3)
    changed = torch.stack(only([target] * rows, [target] * rows, seeds))
    assert (changed != target).double().mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.03)
    others = Counter(changed[changed[:, 0] != 7, 0].tolist())
    assert set(others) == {8, 9, 10, 11}
    assert all(number / others.total() == pytest.approx(1 / 4, abs=0.05) for number in others.values())
    shorter = Corrupted(vocab_size=12, suppressed_ids=range(7), substituted=0.0, deleted=0.25)
    gone = [len(target) - len(text) for text in shorter([target] * rows, [target] * rows, seeds)]
    assert sum(gone) / rows == pytest.approx(0.75, abs=0.05)
    longer = Corrupted(vocab_size=12, suppressed_ids=range(7), substituted=0.0, inserted=0.5)
    extra = [len(text) - len(target) for text in longer([target] * rows, [target] * rows, seeds)]
    assert sum(extra) / rows == pytest.approx(1.5, abs=0.08)
    assert (MISTAKES.reads_target, NOISE.reads_target, Prompt().reads_prompt) == (True, False, True)


@pytest.mark.parametrize("source", [Empty(), NOISE, MISTAKES])
def test_rows_are_the_same_in_every_batch(source: Source) -> None:
    examples: list[EditFlowExample] = [
        {"seed": seed, "target_ids": torch.arange(7, 9 + seed)} for seed in range(9)
    ]
    together = collator(num_draws=2, source=source)(examples)
    for row, example in enumerate(examples):
        alone = collator(num_draws=2, source=source)([example])
        for draw in range(2):
            assert real_tokens(together, 2 * row + draw) == real_tokens(alone, draw)
            assert completed(together, 2 * row + draw) == completed(alone, draw)
            assert together["time"][2 * row + draw] == alone["time"][draw]


def test_what_cannot_be_collated_is_refused() -> None:
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        collator(num_draws=0)
    with pytest.raises(ValueError, match="empty list"):
        collator()([])
    with pytest.raises(ValueError, match="'fixed' of example 0 has 1 entries for 2 target tokens"):
        collator()([{"seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True])}])
    block: EditFlowExample = {
        "seed": 0, "target_ids": torch.tensor([7, 8]), "segment_ids": torch.tensor([0, 1])
    }  # fmt: skip
    with pytest.raises(ValueError, match="cannot keep the documents of a packed block apart"):
        collator()([block])
    given: EditFlowExample = {
        "seed": 0, "target_ids": torch.tensor([7, 8]), "fixed": torch.tensor([True, False])
    }  # fmt: skip
    with pytest.raises(ValueError, match="the prompt cannot be the source of a target with fixed tokens"):
        collator(source=Prompt())([given])
    limited = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=3)
    reference: EditFlowExample = {"seed": 1, "target_ids": torch.arange(7, 11)}
    assert to_list(limited([reference])["limit"]) == [3]
    with pytest.raises(ValueError, match=r"example 1 has 4 target tokens.*max_length=3"):
        limited([{"seed": 0}, {**reference, "fixed": torch.tensor([True, False, False, False])}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomTokens(-1, 9), "max_tokens must be at least 0, got -1"),
        (lambda: RandomTokens(1, 3, (0, 1, 2)), "the number of ids to draw from must be at least 1, got 0"),
        (lambda: Corrupted(9, substituted=1.5), r"substituted must be in \[0, 1\], got 1.5"),
        (lambda: Corrupted(9, deleted=0.6, substituted=0.6), "deleted [+] substituted must be at most 1"),
        (lambda: Corrupted(3, (0, 1)), "the number of ids to draw from must be at least 2, got 1"),
    ],
)
def test_sources_outside_their_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
