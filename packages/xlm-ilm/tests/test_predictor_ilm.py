"""The sampler against the exact distribution of its chain, its limits, and what it costs."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlm.modules.testing import CountingModel, replay, to_list
from xlm_ilm import ILMExample, ILMOutput, ILMPrediction, ILMPredictor, ILMPromptBatch, ILMPromptCollator

from .exact_distribution import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    START,
    Cell,
    Chain,
    Pair,
    State,
    Text,
    chi_square,
    final_distribution,
    network_chain,
    random_network,
    total_variation,
)

ROWS = 20_000


def _prompts(example: ILMExample, rows: int, *, max_length: int) -> ILMPromptBatch:
    return ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=max_length)([example] * rows)


def _texts(prediction: ILMPrediction) -> list[Text]:
    lengths = to_list(prediction.lengths)
    return [tuple(to_list(ids)[:length]) for ids, length in zip(prediction.ids, lengths, strict=True)]


def filtered(chain: Chain, top_k: int, temperature: float) -> Chain:
    def insert(state: State) -> dict[Pair, float]:
        likeliest = sorted(chain.insert(state).items(), key=lambda item: -item[1])[:top_k]
        total = sum(probability ** (1 / temperature) for _, probability in likeliest)
        return {pair: probability ** (1 / temperature) / total for pair, probability in likeliest}

    return Chain(stop=chain.stop, insert=insert)


def with_stop_temperature(chain: Chain, temperature: float) -> Chain:
    def stop(state: State) -> float:
        odds = (chain.stop(state) / (1 - chain.stop(state))) ** (1 / temperature)
        return odds / (1 + odds)

    return Chain(stop=stop, insert=chain.insert)


def two_stage_filtered(chain: Chain) -> Chain:
    """The likelier one of two slots, and of its tokens the square of the probability."""

    def insert(state: State) -> dict[Pair, float]:
        pairs = chain.insert(state)
        slots = Counter[int]()
        for (slot, _), probability in pairs.items():
            slots[slot] += probability  # pyright: ignore[reportArgumentType]  # a Counter of floats
        best = max(slots, key=lambda slot: slots[slot])
        squares = {pair: probability**2 for pair, probability in pairs.items() if pair[0] == best}
        return {pair: square / sum(squares.values()) for pair, square in squares.items()}

    return Chain(stop=chain.stop, insert=insert)


MODEL = random_network(2, seed=11)
CHAIN = network_chain(MODEL, 2)


@pytest.mark.parametrize(
    ("predictor", "chain", "insertions_per_step"),
    [
        (ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw"), CHAIN, 1),
        (ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", sampling="two_stage"), CHAIN, 1),
        (ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", top_p=1.0), CHAIN, 1),
        (
            ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", stop_temperature=3.0),
            with_stop_temperature(CHAIN, 3.0),
            1,
        ),
        (ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", insertions_per_step=2), CHAIN, 2),
        (
            ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", top_k=3, temperature=2.0),
            filtered(CHAIN, 3, 2.0),
            1,
        ),
        (
            ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", temperature=0.4),
            filtered(CHAIN, 100, 0.4),
            1,
        ),
        (
            ILMPredictor(
                pad_id=PAD,
                suppressed_ids=SPECIAL,
                stop="draw",
                sampling="two_stage",
                slot_top_k=1,
                temperature=0.5,
            ),
            two_stage_filtered(CHAIN),
            1,
        ),
    ],
    ids=[
        "joint",
        "two_stage",
        "flattened",
        "stop_temperature",
        "two_insertions",
        "top_k",
        "temperature",
        "slot_top_k",
    ],
)
def test_texts_follow_the_exact_distribution(
    predictor: ILMPredictor, chain: Chain, insertions_per_step: int
) -> None:
    distribution = final_distribution(chain, START, 3, insertions_per_step)
    assert sum(distribution.values()) == pytest.approx(1.0)
    prediction = predictor(MODEL, _prompts({"seed": 0}, ROWS, max_length=3), torch.arange(ROWS))
    statistic, freedom = chi_square(Counter(_texts(prediction)), distribution)
    # Mean + 4 standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_infilling_follows_the_exact_distribution_with_slots_closed() -> None:
    """Given is 3 4 4 with something missing right of the first 4 only, after a prompt."""
    example: ILMExample = {
        "seed": 0,
        "prompt_ids": torch.tensor([4, 3]),
        "target_ids": torch.tensor([3, 4, 3, 4]),
        "fixed": torch.tensor([True, True, False, True]),
    }
    start = (Cell(BOS, False), Cell(3, False), Cell(4, True), Cell(4, False))
    distribution = final_distribution(network_chain(MODEL, 2, prompt=(4, 3)), start, 2)
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw")
    prediction = predictor(MODEL, _prompts(example, ROWS, max_length=5), torch.arange(ROWS))
    statistic, freedom = chi_square(Counter(_texts(prediction)), distribution)
    assert freedom == 6
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_a_prompt_that_is_read_once_follows_the_exact_distribution_of_its_mask() -> None:
    model = random_network(2, seed=5, prompt_sees_target=False)
    distribution = final_distribution(network_chain(model, 2, (4, 3, 3)), START, 2)
    prompts = _prompts({"seed": 0, "prompt_ids": torch.tensor([4, 3, 3])}, ROWS, max_length=2)
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw")
    statistic, freedom = chi_square(
        Counter(_texts(predictor(model, prompts, torch.arange(ROWS)))), distribution
    )
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    model.prompt_sees_target = True
    other = final_distribution(network_chain(model, 2, (4, 3, 3)), START, 2)
    assert total_variation(other, distribution) > 0.1


def test_a_threshold_is_not_the_distribution_that_was_trained() -> None:
    prediction = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL)(
        MODEL, _prompts({"seed": 0}, 2000, max_length=3), torch.arange(2000)
    )
    found = {text: number / 2000 for text, number in Counter(_texts(prediction)).items()}
    assert total_variation(found, final_distribution(CHAIN, START, 3)) > 0.1


class _FixedLogits(nn.Module):
    """Returns the given logits for all rows."""

    def __init__(self, token_logits: Tensor, stop_logits: Tensor) -> None:
        super().__init__()
        self.token_logits = token_logits
        self.stop_logits = stop_logits

    def forward(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, *, positions: Tensor
    ) -> ILMOutput:
        rows, width = input_ids.shape
        flat = self.token_logits[:rows, :width].flatten(0, 1)
        return ILMOutput(token_logits=flat[positions], stop_logits=self.stop_logits[:rows])


def test_one_greedy_step_equals_the_reference(reference: dict[str, Tensor]) -> None:
    """Threshold 0.6, MASK, EOS, PAD, CLS and BOS suppressed, every slot but that of CLS open."""
    mask = reference["xlm.attention_mask"].bool()
    open_slots = mask.clone()
    open_slots[:, 0] = False
    rows = len(mask)
    batch: ILMPromptBatch = {
        "input_ids": reference["xlm.input_ids"],
        "attention_mask": mask,
        "open_slots": open_slots,
        "target_start": torch.full((rows,), 2),
        "budget": torch.ones(rows, dtype=torch.int64),
    }
    model = _FixedLogits(reference["in.logits"], reference["in.stop_logits"])
    predictor = ILMPredictor(pad_id=0, suppressed_ids=(0, 1, 2, 3, 4), stop_threshold=0.6, temperature=0.0)
    prediction = predictor(model, batch, torch.arange(rows))
    for row, ids in enumerate(reference["xlm.greedy_step.decoded_ids"]):
        assert list(_texts(prediction)[row]) == [token for token in to_list(ids)[2:] if token != 0]
    inserted = prediction.lengths - (mask.sum(1) - 2)
    assert torch.equal(inserted, reference["xlm.greedy_step.predict"])


def _constant(stop_probability: float) -> _FixedLogits:
    """Stops with a given probability; inserts into any slot with equal probability."""
    stop = torch.tensor([[math.log(stop_probability), math.log(1 - stop_probability)]])
    return _FixedLogits(torch.zeros(64, 64, 5), stop.repeat(64, 1))


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({"top_k": 2}, {(0, 3), (0, 4)}),
        ({"top_p": 0.7}, {(0, 3), (0, 4), (1, 3)}),
        ({"sampling": "two_stage", "top_k": 1}, {(0, 3), (1, 3)}),
        ({"sampling": "two_stage", "top_p": 0.6}, {(0, 3), (0, 4), (1, 3), (1, 4)}),
        ({"sampling": "two_stage", "slot_top_k": 1}, {(0, 3), (0, 4), (0, 5)}),
        ({"sampling": "two_stage", "slot_top_p": 0.6}, {(0, 3), (0, 4), (0, 5)}),
        ({"sampling": "two_stage", "slot_temperature": 0.0}, {(0, 3), (0, 4), (0, 5)}),
    ],
)
def test_each_filter_acts_alone(options: dict[str, Any], pairs: set[Pair]) -> None:
    """Slots have 0.7 and 0.3 of the mass, and each pair of slot and token the mass in the table."""
    rows = 300
    batch: ILMPromptBatch = {
        "input_ids": torch.tensor([[CLS, BOS, 3]]).repeat(rows, 1),
        "attention_mask": torch.ones(rows, 3, dtype=torch.bool),
        "open_slots": torch.tensor([[False, True, True]]).repeat(rows, 1),
        "target_start": torch.full((rows,), 2),
        "budget": torch.ones(rows, dtype=torch.int64),
    }
    masses = torch.tensor([[0.38, 0.21, 0.11], [0.16, 0.09, 0.05]])
    logits = torch.zeros(rows, 3, 6)
    logits[:, 1:, 3:] = masses.log()
    model = _FixedLogits(logits, torch.tensor([[-9.0, 9.0]]).repeat(rows, 1))
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=(0, 1, 2), **options)
    trace = predictor(model, batch, torch.arange(rows), trace=True).trace
    assert trace is not None
    new = trace.step == 1
    assert set(zip(to_list(trace.position[new]), to_list(trace.token[new]), strict=True)) == pairs


def test_rows_leave_the_batch_when_they_are_full() -> None:
    model = CountingModel(_constant(0.1))
    prompts = _prompts({"seed": 0}, 4, max_length=9)
    prompts["budget"] = torch.tensor([3, 0, 5, 1])
    prediction = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL)(model, prompts, torch.arange(4))
    assert to_list(prediction.lengths) == [3, 0, 5, 1]
    assert to_list(prediction.nfe) == [3, 0, 5, 1]
    assert (model.calls, model.rows) == (5, 9)


def test_a_row_that_stops_costs_one_evaluation() -> None:
    model = CountingModel(_constant(0.95))
    prompts = _prompts({"seed": 0}, 3, max_length=9)
    prediction = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL)(model, prompts, torch.arange(3))
    assert prediction.ids.shape == (3, 0)
    assert (model.calls, model.rows) == (1, 3)
    prediction = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop_threshold=0.96)(
        model, prompts, torch.arange(3)
    )
    assert to_list(prediction.lengths) == [9, 9, 9]


def test_a_row_stops_where_the_threshold_is_reached_exactly() -> None:
    prompts = _prompts({"seed": 0}, 3, max_length=9)
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop_threshold=0.5)
    assert predictor(_constant(0.5), prompts, torch.arange(3)).ids.shape == (3, 0)


@pytest.mark.parametrize(("insertions", "nfe"), [(1, 6), (2, 4), (3, 3), (8, 3)])
def test_several_insertions_per_step_go_to_distinct_slots(insertions: int, nfe: int) -> None:
    """From one slot: 1, 2, 4, 8 slots at most, so that 6 tokens take ceil(log2) steps or more."""
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, insertions_per_step=insertions)
    prompts = _prompts({"seed": 0}, 50, max_length=6)
    prediction = predictor(_constant(0.1), prompts, torch.arange(50), trace=True)
    assert to_list(prediction.lengths) == [6] * 50
    assert to_list(prediction.nfe) == [nfe] * 50
    assert prediction.trace is not None
    per_step = Counter(zip(to_list(prediction.trace.row), to_list(prediction.trace.step), strict=True))
    assert max(per_step.values()) == min(insertions, 3)
    assert all(replay(prediction.trace, row) == list(text) for row, text in enumerate(_texts(prediction)))


def test_max_new_tokens_limits_below_the_room() -> None:
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, max_new_tokens=2)
    example: ILMExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 3, 4]),
        "fixed": torch.tensor([True, False, True]),
    }
    prediction = predictor(_constant(0.1), _prompts(example, 2, max_length=9), torch.arange(2))
    assert to_list(prediction.lengths) == [4, 4]
    assert [(text[0], text[-1]) for text in _texts(prediction)] == [(3, 4), (3, 4)]


def test_greedy_takes_the_likeliest_pair() -> None:
    """Also where another slot has more probability, spread over more tokens."""
    token_logits = torch.full((50, 3, 8), -torch.inf)
    token_logits[:, 1, 4] = 1.0
    token_logits[:, 2, 3:] = 0.9
    model = _FixedLogits(token_logits, torch.tensor([[0.0, 5.0]] * 50))
    example: ILMExample = {"seed": 0, "target_ids": torch.tensor([5]), "fixed": torch.tensor([True])}
    prompts = _prompts(example, 50, max_length=2)
    prompts["open_slots"] = torch.tensor([[False, True, True]] * 50)
    for top_k, top_p in ((None, None), (3, None), (None, 0.9)):
        predictor = ILMPredictor(pad_id=PAD, temperature=0.0, top_k=top_k, top_p=top_p)
        assert set(_texts(predictor(model, prompts, torch.arange(50)))) == {(4, 5)}


@pytest.mark.parametrize("sampling", ["joint", "two_stage"])
def test_a_slot_without_a_possible_token_is_not_drawn(sampling: Any) -> None:
    """And the network's own table of logits stays as it is, from which the token is drawn."""
    token_logits = torch.full((50, 3, 8), -torch.inf)
    token_logits[:, 2, 4] = 1.0
    model = _FixedLogits(token_logits, torch.tensor([[0.0, 5.0]] * 50))
    example: ILMExample = {"seed": 0, "target_ids": torch.tensor([5]), "fixed": torch.tensor([True])}
    prompts = _prompts(example, 50, max_length=2)
    prompts["open_slots"] = torch.tensor([[False, True, True]] * 50)
    predictor = ILMPredictor(pad_id=PAD, sampling=sampling, max_new_tokens=1)
    assert set(_texts(predictor(model, prompts, torch.arange(50)))) == {(5, 4)}


def test_slots_are_compared_in_float32() -> None:
    """Sums of 5 exponentials that differ by 1/1000, less than bfloat16 can tell."""
    token_logits = torch.full((1, 3, 8), -torch.inf, dtype=torch.bfloat16)
    token_logits[0, 1:, 3:] = 0.0
    token_logits[0, 2, 3] = 2.0**-7
    model = _FixedLogits(token_logits, torch.tensor([[0.0, 5.0]]))
    predictor = ILMPredictor(pad_id=PAD, sampling="two_stage", slot_temperature=0.0, temperature=0.0)
    example: ILMExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    prompts = _prompts(example, 1, max_length=3)
    prompts["budget"] = torch.tensor([1])
    assert _texts(predictor(model, prompts, torch.arange(1))) == [(4, 3)]


def test_no_rows_give_no_rows() -> None:
    prompts = _prompts({"seed": 0}, 1, max_length=4)
    empty: ILMPromptBatch = {
        "input_ids": prompts["input_ids"][:0],
        "attention_mask": prompts["attention_mask"][:0],
        "open_slots": prompts["open_slots"][:0],
        "target_start": prompts["target_start"][:0],
        "budget": prompts["budget"][:0],
    }
    assert ILMPredictor(pad_id=PAD)(_constant(0.1), empty, torch.arange(0)).ids.shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"stop_threshold": 0.0}, r"stop_threshold must be in \(0, 1\], got 0.0"),
        ({"stop_temperature": 0.0}, "stop_temperature must be greater than 0"),
        ({"slot_top_k": 2}, "left out with sampling='joint'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be None or at least 1"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\]"),
        ({"insertions_per_step": 0}, "insertions_per_step must be at least 1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILMPredictor(pad_id=PAD, **options)


@pytest.mark.parametrize(("option", "value"), [("stop", "never"), ("sampling", "slot")])
def test_choices_that_do_not_exist_are_refused(option: str, value: Any) -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=rf"{option}(?s:.*)'{value}'"):
        ILMPredictor(pad_id=PAD, **{option: value})
