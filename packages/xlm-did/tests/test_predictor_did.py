"""The sampler against the exact distribution of its chain, its limits, and what it costs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules.testing import CountingModel, replay, to_list
from xlm_did import DIDExample, DIDOutput, DIDPrediction, DIDPredictor, DIDPromptBatch, DIDPromptCollator

from .exact_did import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    Array,
    Pair,
    Rates,
    Text,
    chi_square,
    generated,
    generated_in_rounds,
    generated_in_steps,
    random_network,
    rates_of,
    texts,
    total_variation,
)

ROWS = 6_000
LONGEST = 3
EVERY = texts(2, LONGEST)
MODEL = random_network(2, LONGEST, seed=42)
RATES = rates_of(MODEL, 2, LONGEST)
TIMELESS_MODEL = random_network(2, LONGEST, seed=16, reads_time=False)
TIMELESS = rates_of(TIMELESS_MODEL, 2, LONGEST)


def prompts_of(example: DIDExample, rows: int, *, max_length: int) -> DIDPromptBatch:
    return DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=max_length)([example] * rows)


def texts_of(prediction: DIDPrediction) -> list[Text]:
    lengths = to_list(prediction.lengths)
    return [tuple(to_list(ids)[:length]) for ids, length in zip(prediction.ids, lengths, strict=True)]


def filtered(rates: Rates, top_k: int, temperature: float) -> Rates:
    def insert(text: Text, u: Array) -> dict[Pair, Array]:
        pairs = rates.insert(text, u)
        if not pairs:
            return {}
        table = np.stack(list(pairs.values()))
        kept = table >= np.sort(table, 0)[-min(top_k, len(table))]
        table = np.where(kept, table ** (1 / temperature), 0.0)
        return dict(zip(pairs, table / table.sum(0), strict=True))

    return Rates(numbers=rates.numbers, insert=insert)


def assert_follows(
    model: nn.Module, expected: dict[Text, float], prompts: DIDPromptBatch, **options: Any
) -> None:
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-6)
    rows = len(prompts["input_ids"])
    prediction = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)(
        model, prompts, torch.arange(rows)
    )
    statistic, freedom = chi_square(Counter(texts_of(prediction)), expected)
    # Mean + 4 standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, RATES),
        ({"sampling": "two_stage"}, RATES),
        ({"top_p": 1.0}, RATES),
        ({"top_k": 3, "temperature": 2.0}, filtered(RATES, 3, 2.0)),
        ({"temperature": 0.4}, filtered(RATES, 100, 0.4)),
        ({"insertions": "one", "insertions_per_step": 1}, RATES),
        ({"insertions": "one", "insertions_per_step": 1, "top_k": 3}, filtered(RATES, 3, 1.0)),
    ],
)
def test_the_first_hitting_sampler_follows_the_master_equation(options: dict[str, Any], rates: Rates) -> None:
    prompts = prompts_of({"seed": 0}, ROWS, max_length=LONGEST)
    assert_follows(MODEL, generated(rates, EVERY), prompts, **options)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"num_steps": 1}, RATES),
        ({"num_steps": 3}, RATES),
        ({"num_steps": 2, "sampling": "two_stage"}, RATES),
        ({"num_steps": 2, "top_k": 2}, filtered(RATES, 2, 1.0)),
    ],
)
def test_the_sampler_with_steps_follows_its_exact_distribution(options: dict[str, Any], rates: Rates) -> None:
    expected = generated_in_steps(rates, options["num_steps"])
    assert total_variation(expected, generated(rates, EVERY)) > 0.02
    assert_follows(MODEL, expected, prompts_of({"seed": 0}, ROWS, max_length=LONGEST), **options)


@pytest.mark.parametrize("most", [1, 2, None])
@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, TIMELESS),
        ({"sampling": "two_stage"}, TIMELESS),
        ({"top_k": 3}, filtered(TIMELESS, 3, 1.0)),
        ({"temperature": 0.5}, filtered(TIMELESS, 100, 0.5)),
    ],
)
def test_rounds_follow_their_exact_distribution(
    options: dict[str, Any], rates: Rates, most: int | None
) -> None:
    expected = generated_in_rounds(rates, LONGEST if most is None else most)
    distance = total_variation(expected, generated(rates, EVERY))
    assert distance < 1e-3 if most == 1 else distance > 0.02
    prompts = prompts_of({"seed": 0}, ROWS, max_length=LONGEST)
    assert_follows(TIMELESS_MODEL, expected, prompts, insertions="one", insertions_per_step=most, **options)


@pytest.mark.parametrize("most", [2, None])
def test_the_number_after_a_round_follows_its_last_time(most: int | None) -> None:
    """Texts of four tokens, where a round of several tokens is not the last one."""
    model = random_network(1, 4, seed=9, reads_time=False)
    rates = rates_of(model, 1, 4)
    expected = generated_in_rounds(rates, 4 if most is None else most)
    prompts = prompts_of({"seed": 0}, ROWS, max_length=4)
    assert_follows(model, expected, prompts, insertions="one", insertions_per_step=most)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("most", [1, 3])
def test_rounds_in_parts_follow_their_exact_distribution(num_steps: int, most: int) -> None:
    expected = generated_in_steps(TIMELESS, num_steps, most=most)
    prompts = prompts_of({"seed": 0}, ROWS, max_length=LONGEST)
    options = {"num_steps": num_steps, "insertions": "one", "insertions_per_step": most}
    assert_follows(TIMELESS_MODEL, expected, prompts, **options)


def test_a_limit_conditions_the_number_of_tokens() -> None:
    """It is that of a length head without larger numbers."""
    limited = rates_of(MODEL, 2, 2)
    expected = generated(limited, texts(2, 2))
    assert_follows(MODEL, expected, prompts_of({"seed": 0}, ROWS, max_length=2))
    prompts = prompts_of({"seed": 0}, ROWS, max_length=LONGEST)
    assert_follows(MODEL, expected, prompts, max_new_tokens=2)


@pytest.mark.parametrize("sees_target", [True, False])
def test_a_prompt_is_a_condition_whether_it_is_read_once_or_not(sees_target: bool) -> None:
    model = random_network(2, LONGEST, seed=5, prompt_sees_target=sees_target)
    expected = generated(rates_of(model, 2, 2, prompt=(4, 3, 3)), texts(2, 2))
    prompts = prompts_of({"seed": 0, "prompt_ids": torch.tensor([4, 3, 3])}, ROWS, max_length=2)
    assert_follows(model, expected, prompts)


def test_infilling_follows_the_master_equation_with_slots_closed() -> None:
    """Given is 3 4 4 with something missing right of the first 4 only; fixed tokens count for no number."""
    example: DIDExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3, 4]),
        "fixed": torch.tensor([True, True, False, True]),
    }
    whole = rates_of(MODEL, 2, 9)

    def insert(text: Text, u: Array) -> dict[Pair, Array]:
        pairs = whole.insert((3, 4, *text, 4), u)
        inside = {(slot - 2, token): p for (slot, token), p in pairs.items() if 2 <= slot <= 2 + len(text)}
        return {pair: p / sum(inside.values()) for pair, p in inside.items()} if len(text) < 2 else {}

    def numbers(text: Text) -> Array:
        with torch.no_grad():
            row = torch.tensor([[CLS, BOS, 3, 4, *text, 4]])
            logits = MODEL(row, time=torch.ones(1, dtype=torch.float64)).length_logits[0].numpy()
        return np.array([math.exp(logits[n]) * math.comb(len(text) + n, n) for n in range(3 - len(text))])

    inside = generated(Rates(numbers=numbers, insert=insert), texts(2, 2))
    expected = {(3, 4, *text, 4): probability for text, probability in inside.items()}
    assert_follows(MODEL, expected, prompts_of(example, ROWS, max_length=5))


class Constant(nn.Module):
    """Any pair of slot and token with equal probability, and given scores of the numbers 0, 1, ..."""

    def __init__(self, *length_logits: float, token_logits: Tensor | None = None) -> None:
        super().__init__()
        self.length_logits = torch.tensor(length_logits)
        self.token_logits = token_logits

    def forward(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *, time: Any, positions: Tensor
    ) -> DIDOutput:
        rows, width = input_ids.shape
        lengths = self.length_logits.expand(rows, -1)
        time(lengths)
        logits = torch.zeros(64, 64, 5) if self.token_logits is None else self.token_logits
        return DIDOutput(token_logits=logits[:rows, :width].flatten(0, 1)[positions], length_logits=lengths)


FULL = Constant(*(-99.0 for _ in range(9)), 9.0)
"""As many tokens as there is a budget for, up to 9."""
ALWAYS_ONE_MORE = Constant(-99.0, 9.0)


def test_rows_leave_the_batch_when_they_are_full() -> None:
    model = CountingModel(Constant(*(float(9 * n) for n in range(10))))
    prompts = prompts_of({"seed": 0}, 4, max_length=9)
    prompts["budget"] = torch.tensor([3, 0, 5, 1])
    prediction = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL)(model, prompts, torch.arange(4))
    assert to_list(prediction.lengths) == [3, 0, 5, 1]
    assert to_list(prediction.nfe) == [3, 0, 5, 1]
    assert (model.calls, model.rows) == (5, 9)


def test_a_complete_row_costs_one_evaluation() -> None:
    model = CountingModel(Constant(9.0, -99.0))
    prompts = prompts_of({"seed": 0}, 3, max_length=9)
    for num_steps in (None, 5):
        predictor = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, num_steps=num_steps)
        prediction = predictor(model, prompts, torch.arange(3))
        assert prediction.ids.shape == (3, 0)
        assert to_list(prediction.nfe) == [1, 1, 1]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 64])
def test_steps_insert_exactly_what_is_missing_and_only_steps_with_tokens_cost(num_steps: int) -> None:
    """Nine tokens are missing for certain; the last step inserts all that are left."""

    class Nine(Constant):
        def forward(self, input_ids: Tensor, mask: Tensor, *arguments: Any, **named: Any) -> DIDOutput:
            lengths = torch.full((len(input_ids), 10), -torch.inf)
            lengths[torch.arange(len(mask)), 11 - mask.sum(1)] = 0.0
            self.length_logits = lengths
            return super().forward(input_ids, mask, *arguments, **named)

    rows = 50
    model = CountingModel(Nine())
    prompts = prompts_of({"seed": 0}, rows, max_length=9)
    predictor = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, num_steps=num_steps)
    prediction = predictor(model, prompts, torch.arange(rows), trace=True)
    assert to_list(prediction.lengths) == [9] * rows
    trace = prediction.trace
    assert trace is not None
    turns = [len(trace.step[(trace.row == row) & (trace.step > 0)].unique()) for row in range(rows)]
    assert to_list(prediction.nfe) == turns
    assert max(turns) <= min(num_steps, 9)
    assert all(replay(trace, row) == list(text) for row, text in enumerate(texts_of(prediction)))


def test_a_round_is_read_at_the_latest_time_of_what_is_missing() -> None:
    """Of nine uniform times the one behind the m latest is (9 - m) / 10 on average."""
    sums, counts = np.zeros(9), np.zeros(9)

    class Reads(Constant):
        def forward(self, input_ids: Tensor, *arguments: Any, time: Any, **named: Any) -> DIDOutput:
            inserted = arguments[0].sum(1) - 2  # CLS and BOS

            def choose(length_logits: Tensor) -> None:
                np.add.at(sums, inserted.numpy(), time(length_logits).numpy())
                np.add.at(counts, inserted.numpy(), 1)

            return super().forward(input_ids, *arguments, time=choose, **named)

    model = Reads(*(-99.0 for _ in range(9)), 9.0)
    predictor = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, num_steps=1, insertions="one")
    prompts = prompts_of({"seed": 0}, 64, max_length=9)
    for seeds in torch.arange(32 * 64).split(64):
        assert set(to_list(predictor(model, prompts, seeds).lengths)) == {9}
    seen = counts > 500
    assert seen.sum() >= 3
    np.testing.assert_allclose((sums / counts.clip(1))[seen], (9 - np.arange(9)[seen]) / 10, atol=0.02)


def test_a_slot_that_surely_lacks_a_token_gets_one() -> None:
    """Independent draws of two tokens would miss a slot of probability 1/2 in a quarter of the rows."""
    token_logits = torch.full((200, 3, 8), -torch.inf)
    token_logits[:, 1:, 4] = 0.0
    model = Constant(-99.0, -99.0, 9.0, token_logits=token_logits)
    example: DIDExample = {"seed": 0, "target_ids": torch.tensor([5]), "fixed": torch.tensor([True])}
    prompts = prompts_of(example, 200, max_length=3)
    prompts["open_slots"] = torch.tensor([[False, True, True]] * 200)
    predictor = DIDPredictor(pad_id=PAD, insertions="one")
    prediction = predictor(model, prompts, torch.arange(200))
    assert set(texts_of(prediction)) == {(4, 5, 4)}
    assert set(to_list(prediction.nfe)) == {1}


def test_greedy_takes_the_likeliest_pair() -> None:
    """Also where another slot has more probability, spread over more tokens."""
    token_logits = torch.full((50, 3, 8), -torch.inf)
    token_logits[:, 1, 4] = 1.0
    token_logits[:, 2, 3:] = 0.9
    model = Constant(-99.0, 9.0, token_logits=token_logits)
    example: DIDExample = {"seed": 0, "target_ids": torch.tensor([5]), "fixed": torch.tensor([True])}
    prompts = prompts_of(example, 50, max_length=2)
    prompts["open_slots"] = torch.tensor([[False, True, True]] * 50)
    for top_k, top_p in ((None, None), (3, None), (None, 0.9)):
        predictor = DIDPredictor(pad_id=PAD, temperature=0.0, top_k=top_k, top_p=top_p)
        assert set(texts_of(predictor(model, prompts, torch.arange(50)))) == {(4, 5)}


@pytest.mark.parametrize("sampling", ["joint", "two_stage"])
def test_a_slot_without_a_possible_token_is_not_drawn(sampling: Any) -> None:
    token_logits = torch.full((50, 3, 8), -torch.inf)
    token_logits[:, 2, 4] = 1.0
    model = Constant(-99.0, 9.0, token_logits=token_logits)
    example: DIDExample = {"seed": 0, "target_ids": torch.tensor([5]), "fixed": torch.tensor([True])}
    prompts = prompts_of(example, 50, max_length=2)
    prompts["open_slots"] = torch.tensor([[False, True, True]] * 50)
    predictor = DIDPredictor(pad_id=PAD, sampling=sampling, max_new_tokens=1)
    assert set(texts_of(predictor(model, prompts, torch.arange(50)))) == {(5, 4)}


def test_no_rows_give_no_rows() -> None:
    prompts = prompts_of({"seed": 0}, 1, max_length=4)
    empty: DIDPromptBatch = {
        "input_ids": prompts["input_ids"][:0],
        "attention_mask": prompts["attention_mask"][:0],
        "open_slots": prompts["open_slots"][:0],
        "target_start": prompts["target_start"][:0],
        "budget": prompts["budget"][:0],
    }
    assert DIDPredictor(pad_id=PAD)(FULL, empty, torch.arange(0)).ids.shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"num_steps": 0}, "num_steps must be None or at least 1, got 0"),
        ({"num_steps": 4, "temperature": 0.0}, "temperature must be above 0 with num_steps"),
        ({"insertions": "one", "temperature": 0.0}, "temperature must be above 0 with num_steps or"),
        ({"insertions_per_step": 2}, "insertions_per_step must be None without insertions='one' or 'apart'"),
        ({"least_expected": 0.5}, "least_expected must be 0 without insertions='one' or 'apart', got 0.5"),
        ({"insertions": "one", "least_expected": 1.5}, "least_expected must be from 0 to 1, got 1.5"),
        ({"insertions": "one", "insertions_per_step": 0}, "insertions_per_step must be None or at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be None or at least 1"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\]"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DIDPredictor(pad_id=PAD, **options)


def test_a_choice_that_does_not_exist_is_refused() -> None:
    value: Any = "slot"
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=r"sampling(?s:.*)'slot'"):
        DIDPredictor(pad_id=PAD, sampling=value)
