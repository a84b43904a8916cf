import math
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from xlm.modules import LogLinear, Sine
from xlm_flexmdm import (
    FlexMDMBatch,
    FlexMDMCollator,
    FlexMDMExample,
    FlexMDMLikelihoodCollator,
    FlexMDMPromptCollator,
    Interpolant,
)

PAD, MASK, BOS = 0, 2, 4
LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))


def _collator(
    interpolant: Interpolant = LINEAR,
    max_length: int | None = None,
    time_power: float = 1.0,
    unmasking_weight: Literal["hazard", "one"] = "hazard",
) -> FlexMDMCollator:
    return FlexMDMCollator(
        interpolant=interpolant,
        pad_id=PAD,
        mask_id=MASK,
        bos_id=BOS,
        max_length=max_length,
        time_power=time_power,
        unmasking_weight=unmasking_weight,
    )


def _prompts(max_length: int = 9) -> FlexMDMPromptCollator:
    return FlexMDMPromptCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, max_length=max_length)


def _example(
    target: list[int] | None = None,
    *,
    prompt: list[int] | None = None,
    fixed: list[int] | None = None,
    seed: int = 0,
) -> FlexMDMExample:
    """``fixed`` holds the places of the fixed tokens."""
    example: FlexMDMExample = {"seed": seed}
    if target is not None:
        example["target_ids"] = torch.tensor(target, dtype=torch.int64)
    if prompt is not None:
        example["prompt_ids"] = torch.tensor(prompt, dtype=torch.int64)
    if target is not None and fixed is not None:
        example["fixed"] = torch.tensor([place in fixed for place in range(len(target))], dtype=torch.bool)
    return example


def _columns(batch: FlexMDMBatch, row: int) -> list[tuple[int, int, bool, bool, int, bool]]:
    """Id, clean id, masked, open, gap and given of each column of a row."""
    names = ("input_ids", "clean_ids", "masked", "open_slots", "gaps", "given")
    size = int(batch["attention_mask"][row].sum())
    return [
        (int(a), int(b), bool(c), bool(d), int(e), bool(f))
        for a, b, c, d, e, f in zip(*(batch[name][row, :size] for name in names), strict=True)
    ]


def test_rows_hold_prompt_bos_and_what_is_present() -> None:
    """Each row is read back: its columns and gaps give the clean text, its masks hide the right token."""
    targets = [[10 + n, 11 + n, 12 + n, 13 + n, 14 + n] for n in range(200)]
    examples = [_example(target, prompt=[7] * (n % 3), seed=n) for n, target in enumerate(targets)]
    batch = _collator()(examples)
    seen: set[bool] = set()
    for row, target in enumerate(targets):
        columns = _columns(batch, row)
        prompt = row % 3
        assert batch["target_start"][row] == prompt + 1
        assert columns[:prompt] == [(7, 7, False, False, 0, True)] * prompt
        assert columns[prompt][:4] == (BOS, BOS, False, True)
        place = columns[prompt][4]
        for token, clean, masked, is_open, gap, given in columns[prompt + 1 :]:
            assert clean == target[place]
            assert token == (MASK if masked else clean)
            assert (is_open, given) == (True, False)
            seen.add(masked)
            place += 1 + gap
        assert place == len(target)
    assert seen == {True, False}
    assert torch.equal(batch["num_missing"], torch.tensor([5] * 200))
    padding = ~batch["attention_mask"]
    assert (batch["input_ids"][padding] == PAD).all()
    assert not (batch["open_slots"] | batch["masked"] | batch["given"])[padding].any()
    assert (batch["gaps"][padding] == 0).all()


def test_width_is_that_of_the_longest_row_after_noising() -> None:
    batch = _collator()([_example(list(range(10, 30)), seed=seed) for seed in range(2)])
    assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max()) < 21


def test_shares_of_absent_and_masked_tokens() -> None:
    """-(1 - t) log(1 - t) of the tokens are masked at t, and 1 - t absent, with linear schedules."""
    examples = [_example([10] * 20, seed=seed) for seed in range(2000)]
    batch = _collator()(examples)
    t = batch["time"]
    for low, high in ((0.1, 0.2), (0.5, 0.6), (0.85, 0.95)):
        rows = (t > low) & (t < high)
        chances = -(1 - t[rows]) * (1 - t[rows]).log()
        absent, masked = batch["gaps"][rows].sum(1) / 20, batch["masked"][rows].sum(1) / 20
        for found, expected in ((masked, chances), (absent, 1 - t[rows])):
            tolerance = 4 * math.sqrt(0.25 / 20 / len(found))
            assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=tolerance)


def test_times_weights_and_time_input() -> None:
    interpolant = Interpolant(Sine(), LogLinear(eps=0), time_input="alpha")
    plain = _collator()([_example([10], seed=seed) for seed in range(50)])
    batch = _collator(interpolant)([_example([10], seed=seed) for seed in range(50)])
    t = plain["time"]
    torch.testing.assert_close(plain["unmasking_weight"], 1 / (1 - t))
    torch.testing.assert_close(plain["missing_chance"], 1 - t)
    angle = torch.pi / 2 * t
    torch.testing.assert_close(batch["time"], 1 - angle.cos())
    torch.testing.assert_close(batch["missing_chance"], angle.cos())
    torch.testing.assert_close(batch["insertion_weight"], torch.pi / 2 * angle.tan())
    torch.testing.assert_close(batch["unmasking_weight"], 1 / (1 - t))


def test_late_times_are_drawn_more_often_and_weigh_less() -> None:
    """t = 1 - v^2 where the power 1 has t = 1 - v, and the weights are divided by the density 1 / (2v)."""
    examples = [_example([10], seed=seed) for seed in range(50)]
    plain, late = _collator()(examples), _collator(time_power=2.0)(examples)
    v = 1 - plain["time"]
    torch.testing.assert_close(late["time"], 1 - v**2)
    torch.testing.assert_close(late["missing_chance"], v**2)
    torch.testing.assert_close(late["unmasking_weight"], 2 * v / v**2)
    torch.testing.assert_close(late["insertion_weight"], 2 * v / v**2)


def test_no_time_is_so_late_that_weights_are_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 - v^2 rounds to 1 for the smallest v that can be drawn."""
    smallest = torch.tensor([2.0**-53], dtype=torch.float64)

    def drawn(*_: object, **__: object) -> Tensor:
        return smallest

    monkeypatch.setattr("xlm_flexmdm.datamodule_flexmdm.stratified_times", drawn)
    batch = _collator(time_power=2.0)([_example([10])])
    assert float(batch["time"]) < 1
    assert batch["unmasking_weight"].isfinite().all()
    assert batch["insertion_weight"].isfinite().all()


def test_masks_may_weigh_the_same_at_all_times() -> None:
    examples = [_example([10], seed=seed) for seed in range(50)]
    hazard = _collator(time_power=2.0)(examples)
    one = _collator(time_power=2.0, unmasking_weight="one")(examples)
    t = one["time"]
    torch.testing.assert_close(one["unmasking_weight"], 2 * (1 - t).sqrt())  # dt = 2v dv
    torch.testing.assert_close(one["insertion_weight"], hazard["insertion_weight"])
    torch.testing.assert_close(t, hazard["time"])
    with pytest.raises((ValueError, TypeCheckError), match="unmasking_weight"):
        _collator(unmasking_weight="two")  # pyright: ignore[reportArgumentType]


def test_times_are_stratified_over_places() -> None:
    examples = [{**_example([10], seed=seed), "place": 64 + seed} for seed in range(16)]
    t = _collator()(examples)["time"]  # pyright: ignore[reportArgumentType]  # a dict display of a TypedDict
    assert sorted(int(time * 16) for time in t) == list(range(16))
    halves = [_collator()(part)["time"] for part in (examples[:5], examples[5:])]  # pyright: ignore[reportArgumentType]  # the same
    assert torch.equal(torch.cat(halves), t)


def test_fixed_tokens_stay_and_close_their_slots() -> None:
    target = [10, 11, 12, 13, 14, 15]
    batch = _collator()([_example(target, fixed=[0, 1, 4, 5], seed=seed) for seed in range(60)])
    for row in range(60):
        columns = _columns(batch, row)
        kept = {clean: (masked, is_open, given) for _, clean, masked, is_open, _, given in columns[1:]}
        assert columns[0][3] is False, "nothing is missing left of the first token"
        assert kept[10] == (False, False, True)
        assert kept[11] == (False, True, True)
        assert kept[14] == (False, False, True)
        assert kept[15] == (False, False, True)
        assert all(kept[free][1:] == (True, False) for free in (12, 13) if free in kept)
        gaps = {clean: gap for _, clean, _, _, gap, _ in columns}
        assert gaps[11] + sum(free in gaps for free in (12, 13)) + gaps.get(12, 0) + gaps.get(13, 0) == 2
    assert torch.equal(batch["num_missing"], torch.tensor([2] * 60))


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ([], [True]),
        ([0], [False, True]),
        ([2], [True, False]),
        ([0, 2], [False, True, False]),
        ([0, 1, 2], [False, False, False, False]),
    ],
)
def test_prompts_of_infilling_open_the_slots_where_tokens_are_missing(
    fixed: list[int], expected: list[bool]
) -> None:
    batch = _prompts()([_example([10, 11, 12], fixed=fixed)])
    assert torch.equal(batch["input_ids"], torch.tensor([[BOS, *(10 + place for place in fixed)]]))
    assert torch.equal(batch["open_slots"], torch.tensor([expected]))
    assert torch.equal(batch["budget"], torch.tensor([9 - len(fixed)]))


def test_prompts_without_a_target_and_with_one() -> None:
    batch = _prompts()([_example(), _example(prompt=[7, 8]), _example([10, 11], prompt=[7])])
    assert torch.equal(batch["input_ids"], torch.tensor([[BOS, PAD, PAD], [7, 8, BOS], [7, BOS, PAD]]))
    assert torch.equal(batch["open_slots"].int(), torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]]))
    assert torch.equal(batch["attention_mask"].int(), torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]))
    assert torch.equal(batch["target_start"], torch.tensor([1, 3, 2]))
    assert torch.equal(batch["budget"], torch.tensor([9, 9, 9]))


def test_empty_target_has_one_open_slot_and_no_gap() -> None:
    batch = _collator()([_example([]), _example(prompt=[7])])
    assert torch.equal(batch["open_slots"].int(), torch.tensor([[1, 0], [0, 1]]))
    assert batch["gaps"].sum() == 0
    assert torch.equal(batch["num_missing"], torch.tensor([0, 0]))


def test_draws_of_the_likelihood_differ() -> None:
    collate = FlexMDMLikelihoodCollator(interpolant=LINEAR, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=3)
    batch = collate([_example(list(range(10, 40)), seed=5), _example([10], seed=6)])
    assert batch["num_draws"] == 3
    assert torch.equal(batch["target_lengths"], torch.tensor([30, 30, 30, 1, 1, 1]))
    assert len({float(time) for time in batch["time"]}) == 6
    assert not torch.equal(batch["input_ids"][0], batch["input_ids"][1])


@dataclass(frozen=True, kw_only=True)
class _Recording(Interpolant):
    """Keeps the uniform numbers that it makes states of."""

    seen: list[Tensor]

    def states(
        self, t: Tensor, insertion_uniforms: Tensor, unmasking_uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.seen.extend((insertion_uniforms, unmasking_uniforms))
        return super().states(t, insertion_uniforms, unmasking_uniforms)


def test_draws_of_an_example_are_independent() -> None:
    """No number is used twice: not for two draws, not for insertion and unmasking, nor for the time."""
    noise = _Recording(insertion=LogLinear(eps=0), unmasking=LogLinear(eps=0), seen=[])
    collate = FlexMDMLikelihoodCollator(interpolant=noise, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=3)
    batch = collate([_example(list(range(10, 15)), seed=seed) for seed in range(20)])
    # Times are 1 - v^2, with one v in each third.
    levels = 3 * (1 - batch["time"]).sqrt() - torch.arange(3).repeat(20)
    numbers = torch.cat([table.flatten() for table in (*noise.seen, levels)])
    assert len(numbers) == 20 * 3 * (5 + 5 + 1)
    assert (numbers.sort().values.diff() > 1e-9).all()


def _bad(kind: str) -> FlexMDMExample:
    if kind == "mask_in_target":
        return _example([10, MASK])
    if kind == "mask_in_prompt":
        return _example([10], prompt=[MASK])
    if kind == "too_long":
        return _example([10] * 5)
    return {"seed": 0, "target_ids": torch.tensor([10, 11]), "fixed": torch.tensor([True])}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mask_in_target", r"holds MASK \(mask_id=2\)"),
        ("mask_in_prompt", r"holds MASK \(mask_id=2\)"),
        ("too_long", r"example 1 .* 5 target tokens, .*max_length=4"),
        ("fixed", "'fixed' of example 1 has 1 entries for 2 target tokens"),
    ],
)
def test_what_is_refused(kind: str, message: str) -> None:
    for collate in (_collator(max_length=4), _prompts(max_length=4)):
        with pytest.raises(ValueError, match=message):
            collate([_example([10]), _bad(kind)])


def test_options_that_are_refused() -> None:
    with pytest.raises(ValueError, match="empty list"):
        _collator()([])
    with pytest.raises(ValueError, match="cannot keep the documents of a packed block apart"):
        _collator()([{**_example([10, 11]), "segment_ids": torch.tensor([0, 1])}])
    with pytest.raises(ValueError, match=r"time_power must be at least 1, got 0\.5"):
        _collator(time_power=0.5)
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        FlexMDMLikelihoodCollator(interpolant=LINEAR, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=0)


def test_padding_may_share_its_id_with_a_text() -> None:
    """The length of a row is in the mask; with a tokenizer whose PAD is its EOS, a text may hold it."""
    batch = _collator()([_example([PAD, 10, PAD], seed=seed) for seed in range(30)])
    assert torch.equal(batch["gaps"].sum(1) + batch["attention_mask"].sum(1) - 1, torch.full((30,), 3))
    clean: Tensor = batch["clean_ids"][:, 1:][batch["masked"][:, 1:]]
    assert {int(token) for token in clean} == {PAD, 10}
