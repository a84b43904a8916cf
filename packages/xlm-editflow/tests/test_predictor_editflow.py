"""The sampler against the exact distribution of its chain, its limits, its trace, and what it costs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules.records import DELETE, INSERT, UserEdit
from xlm.modules.testing import CountingModel, replay, to_list
from xlm_editflow import (
    Corrupted,
    EditFlowExample,
    EditFlowOutput,
    EditFlowPrediction,
    EditFlowPredictor,
    EditFlowPromptBatch,
    EditFlowPromptCollator,
    Prompt,
    RandomTokens,
)
from xlm_editflow.sources_editflow import Source

from .exact_editflow import (
    BOS,
    FIRST,
    PAD,
    SPECIAL,
    Action,
    Array,
    Rates,
    Text,
    chi_square,
    generated,
    random_network,
    rates_of,
    texts,
    total_variation,
)
from .exact_steps_editflow import generated_in_steps

ROWS = 3_000
LIMIT = 3
EVERY = texts(2, LIMIT)
MODEL = random_network(2, seed=11)
RATES = rates_of(MODEL, 2, LIMIT)
A, B = FIRST, FIRST + 1
NOTHING: EditFlowExample = {"seed": 0}
GIVEN: EditFlowExample = {"seed": 0, "prompt_ids": torch.tensor([B, A])}


def sources_of(
    example: EditFlowExample, rows: int, *, max_length: int = LIMIT, source: Source | None = None
) -> EditFlowPromptBatch:
    collate = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=max_length, source=source)
    return collate([example] * rows)


def texts_of(prediction: EditFlowPrediction) -> list[Text]:
    lengths = to_list(prediction.lengths)
    return [tuple(to_list(ids)[:length]) for ids, length in zip(prediction.ids, lengths, strict=True)]


def assert_follows(
    model: nn.Module, expected: dict[Text, float], batch: EditFlowPromptBatch, **options: Any
) -> None:
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-6)
    rows = len(batch["input_ids"])
    predictor = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    prediction = predictor(model, batch, torch.arange(rows))
    statistic, freedom = chi_square(Counter(texts_of(prediction)), expected)
    # Mean + 4 standard deviations of the chi-square distribution.
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def sharpened(rates: Rates, temperature: float) -> Rates:
    """Tokens of each gap and place at a temperature; which edits are made stays."""

    def found(text: Text, u: Array) -> dict[Action, Array]:
        table = rates(text, u)
        groups: dict[tuple[str, int], list[Action]] = {}
        for action in table:
            groups.setdefault(action[:2], []).append(action)
        result: dict[Action, Array] = {}
        for actions in groups.values():
            before = np.stack([table[action] for action in actions])
            after = before ** (1 / temperature)
            scale = before.sum(0) / np.maximum(after.sum(0), 1e-300)
            result |= dict(zip(actions, after * scale, strict=True))
        return result

    return found


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"num_steps": 1}, {}),
        ({"num_steps": 3}, {}),
        ({"num_steps": 2, "insertions": "poisson"}, {"is_poisson": True}),
        ({"num_steps": 4, "correction": 1.5}, {"correction": 1.5}),
    ],
)
def test_steps_follow_their_exact_distribution(options: dict[str, Any], exact: dict[str, Any]) -> None:
    expected = generated_in_steps(RATES, {(): 1.0}, options["num_steps"], LIMIT, **exact)
    assert total_variation(expected, generated(RATES, EVERY, {(): 1.0})) > 0.02
    assert_follows(MODEL, expected, sources_of(NOTHING, ROWS), **options)


def test_reverse_moves_go_back_to_the_end_of_the_step() -> None:
    """Where nothing else deletes, so that later steps do not hide how much they took away."""
    model = random_network(2, seed=11, only_insertions=True)
    rates = rates_of(model, 2, LIMIT)
    expected, plain = (generated_in_steps(rates, {(): 1.0}, 2, LIMIT, correction=eta) for eta in (0.5, 0.0))
    assert total_variation(expected, plain) > 0.02
    assert_follows(model, expected, sources_of(NOTHING, ROWS), num_steps=2, correction=0.5)


def test_tokens_are_drawn_at_a_temperature_and_edits_are_not() -> None:
    rates = sharpened(RATES, 0.4)
    expected = generated_in_steps(rates, {(): 1.0}, 2, LIMIT)
    assert_follows(MODEL, expected, sources_of(NOTHING, ROWS), num_steps=2, temperature=0.4)


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"num_steps": None, "num_points": 16}])
def test_a_source_is_edited(options: dict[str, Any]) -> None:
    """From the prompt itself, with it as a condition."""
    rates = rates_of(MODEL, 2, LIMIT, prompt=(B, A))
    start = {(B, A): 1.0}
    expected = (
        generated(rates, EVERY, start)
        if options["num_steps"] is None
        else generated_in_steps(rates, start, options["num_steps"], LIMIT)
    )
    assert_follows(MODEL, expected, sources_of(GIVEN, 2_000, source=Prompt()), **options)


def test_first_hitting_follows_the_matrix_exponential() -> None:
    expected = generated(RATES, EVERY, {(): 1.0})
    batch = sources_of(NOTHING, 2_000)
    assert_follows(MODEL, expected, batch, num_steps=None, num_points=16)


def test_a_random_source_has_its_distribution() -> None:
    noise = RandomTokens(max_tokens=2, vocab_size=FIRST + 2, suppressed_ids=SPECIAL)
    examples: list[EditFlowExample] = [{"seed": seed} for seed in range(ROWS)]
    batch = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=LIMIT, source=noise)(examples)
    start = {text: 1 / 3 / 2 ** len(text) for text in texts(2, 2)}
    expected = generated_in_steps(RATES, start, 1, LIMIT)
    assert_follows(MODEL, expected, batch, num_steps=1)


@pytest.mark.parametrize("sees_target", [True, False])
def test_a_prompt_is_a_condition_whether_it_is_read_once_or_not(sees_target: bool) -> None:
    model = random_network(2, seed=5, prompt_sees_target=sees_target)
    expected = generated_in_steps(rates_of(model, 2, 2, prompt=(B, A)), {(): 1.0}, 2, 2)
    assert_follows(model, expected, sources_of(GIVEN, ROWS, max_length=2), num_steps=2)


def test_infilling_edits_between_given_tokens_only() -> None:
    """Given is A B B with something missing right of the first B only."""
    example: EditFlowExample = {
        "seed": 0,
        "target_ids": torch.tensor([A, B, A, B]),
        "fixed": torch.tensor([True, True, False, True]),
    }
    whole = rates_of(MODEL, 2, 9)

    def inside(text: Text, u: Array) -> dict[Action, Array]:
        found: dict[Action, Array] = {}
        for (kind, place, token), rate in whole((A, B, *text, B), u).items():
            end = len(text) + (kind == "insert")
            if 2 <= place < 2 + end and not (kind == "insert" and len(text) == 2):
                found[kind, place - 2, token] = rate
        return found

    expected = {(A, B, *text, B): mass for text, mass in generated_in_steps(inside, {(): 1.0}, 2, 2).items()}
    assert_follows(MODEL, expected, sources_of(example, ROWS, max_length=5), num_steps=2)


class Constant(nn.Module):
    """Given operation logits in every column, and tokens with equal probability."""

    def __init__(self, insert: float, delete: float, substitute: float, vocab_size: int = 5) -> None:
        super().__init__()
        self.logits = torch.tensor([insert, delete, substitute])
        self.vocab_size = vocab_size
        self.times: list[float] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        *,
        time: Any,
        insert_at: Tensor,
        substitute_at: Tensor,
    ) -> EditFlowOutput:
        operations = self.logits.expand(*input_ids.shape, 3)

        def operations_at(times: Tensor) -> Tensor:
            return operations

        if not isinstance(time, Tensor):
            chosen = time(operations_at)
            self.times.append(float(chosen[0]))
        cells = len(insert_at) + len(substitute_at)
        return EditFlowOutput(torch.zeros(cells, self.vocab_size), operations)


def run(model: nn.Module, batch: EditFlowPromptBatch, **options: Any) -> EditFlowPrediction:
    predictor = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    return predictor(model, batch, torch.arange(len(batch["input_ids"])), trace=True)


@pytest.mark.parametrize("num_steps", [1, 4, None])
def test_what_is_certainly_deleted_goes_and_the_rest_stays(num_steps: int | None) -> None:
    """BOS and given tokens are never deleted; the last step leaves nothing that is pending."""
    example: EditFlowExample = {
        "seed": 0,
        "prompt_ids": torch.tensor([A, A]),
        "target_ids": torch.tensor([A, B, B, A]),
        "fixed": torch.tensor([True, False, False, True]),
    }
    noise = Corrupted(vocab_size=5, suppressed_ids=SPECIAL, substituted=0.0)
    batch = sources_of(example, 20, max_length=6, source=noise)
    assert set(texts_of(run(Constant(-900.0, 900.0, -900.0), batch, num_steps=num_steps))) == {(A, A)}
    kept = run(Constant(-900.0, -900.0, -900.0), batch, num_steps=num_steps)
    assert set(texts_of(kept)) == {(A, B, B, A)}
    changed = run(Constant(-900.0, -900.0, 900.0), batch, num_steps=1)
    for text in texts_of(changed):
        assert (text[0], text[3]) == (A, A)
        assert B not in text[1:3]


@pytest.mark.parametrize("options", [{"num_steps": 5}, {"num_steps": 3, "insertions": "poisson"}])
def test_traces_with_deletions_replay(options: dict[str, Any]) -> None:
    """From the empty text to the ids, each deletion with the token that it removes."""
    batch = sources_of(GIVEN, 100, max_length=9, source=Prompt())
    prediction = run(Constant(0.5, 0.2, 0.1), batch, **options)
    trace = prediction.trace
    assert trace is not None
    for row, text in enumerate(texts_of(prediction)):
        assert replay(trace, row) == list(text)
        ids: list[int] = []
        mine = trace.row == row
        columns = (trace.operation[mine], trace.position[mine], trace.token[mine])
        for operation, position, token in zip(*map(to_list, columns), strict=True):
            if operation == DELETE:
                assert ids[position] == token
            ids[position : position + (operation != 0)] = [] if operation == DELETE else [token]
    assert {0, 1, 2} == set(to_list(trace.operation))


def test_reverse_moves_are_deletions_of_the_same_step() -> None:
    batch = sources_of(NOTHING, 200, max_length=9)
    prediction = run(Constant(1.0, -900.0, -900.0), batch, num_steps=4, correction=0.9)
    trace = prediction.trace
    assert trace is not None
    gone = trace.step[trace.operation == DELETE]
    assert set(to_list(gone)) == {1, 2, 3}  # the last step ends at 0
    assert all(replay(trace, row) == list(text) for row, text in enumerate(texts_of(prediction)))


def test_a_limit_ends_growth_and_a_longer_source_only_shrinks() -> None:
    grows = Constant(9.0, -900.0, -900.0)
    for options in ({"num_steps": 3, "insertions": "poisson"}, {"num_steps": None}):
        assert to_list(run(grows, sources_of(NOTHING, 5, max_length=4), **options).lengths) == [4] * 5
        limited = run(grows, sources_of(NOTHING, 5, max_length=9), max_new_tokens=2, **options)
        assert to_list(limited.lengths) == [2] * 5
    batch = sources_of({"seed": 0, "prompt_ids": torch.tensor([A] * 5)}, 50, source=Prompt())
    lengths = run(Constant(9.0, -1.0, -900.0), batch, num_steps=2).lengths
    assert int(lengths.max()) <= 5
    assert int(lengths.min()) < 5


def test_evaluations_are_steps_or_edits_and_one() -> None:
    model = CountingModel(Constant(9.0, -900.0, -900.0))
    batch = sources_of(NOTHING, 4, max_length=9)
    batch["limit"] = torch.tensor([3, 0, 5, 1])
    prediction = run(model, batch, num_steps=None)
    assert to_list(prediction.lengths) == [3, 0, 5, 1]
    # A row leaves when nothing can happen: tokens that were inserted stay editable.
    assert to_list(prediction.nfe) == [4, 0, 6, 2]
    assert (model.calls, model.rows) == (6, 12)
    assert to_list(run(Constant(-900.0, 0.0, 0.0), batch, num_steps=None).nfe) == [1, 0, 1, 1]
    assert to_list(run(model, batch, num_steps=7).nfe) == [7, 0, 7, 7]


def test_first_hitting_reads_each_edit_at_its_time() -> None:
    """Which falls from edit to edit, to the last time where none follows."""
    model = Constant(3.0, -900.0, -900.0)
    found = run(model, sources_of(NOTHING, 1, max_length=99), num_steps=None, last_time=0.2)
    assert len(model.times) == int(found.nfe[0]) > 2
    assert model.times[0] < 1
    assert model.times == sorted(model.times, reverse=True)
    assert len(set(model.times)) == len(model.times)
    assert model.times[-1] == pytest.approx(0.2)


def test_corrections_need_an_empty_source() -> None:
    batch = sources_of(GIVEN, 2, source=Prompt())
    with pytest.raises(ValueError, match=r"correction must be 0 for sources that are not empty, got 0\.5"):
        run(MODEL, batch, num_steps=2, correction=0.5)


def test_no_rows_give_no_rows() -> None:
    batch: Any = {
        name: table[:0] for name, table in sources_of(NOTHING, 1).items() if isinstance(table, Tensor)
    }
    for num_steps in (2, None):
        predictor = EditFlowPredictor(pad_id=PAD, num_steps=num_steps)
        assert predictor(MODEL, batch, torch.arange(0)).ids.shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"num_steps": 0}, "num_steps must be None or at least 1, got 0"),
        ({"correction": -1.0}, "correction must be at least 0, got -1.0"),
        ({"correction": 0.5, "num_steps": None}, "correction must be 0 without num_steps"),
        ({"last_time": 0.0}, r"last_time must be in \(0, 1\), got 0.0"),
        ({"num_points": 1}, "num_points must be at least 2, got 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be None or at least 1"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\]"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EditFlowPredictor(pad_id=PAD, **options)


@pytest.mark.parametrize("name", ["insertions", "alignment"])
def test_a_choice_that_does_not_exist_is_refused(name: str) -> None:
    # TypeError where the annotations are checked at run time.
    value: Any = {name: "many"}
    with pytest.raises((ValueError, TypeError), match=rf"{name}(?s:.*)'many'"):
        EditFlowPredictor(pad_id=PAD, **value)


@pytest.mark.parametrize("options", [{"num_steps": 4}, {"num_steps": None, "num_points": 8}])
def test_a_token_of_the_user_stays(options: dict[str, Any]) -> None:
    """Also where a later edit of it is drawn; a token that no sampler writes shows where it is."""
    rows = 10
    batch, seeds = sources_of(GIVEN, rows, source=Prompt()), torch.arange(rows)
    predict = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    plain = predict(MODEL, batch, seeds, trace=True)
    touched = 0
    for row in set(to_list(plain.trace.row[plain.trace.step == 1])):
        forked = predict.fork(MODEL, batch, seeds, UserEdit(row, 1, 0, BOS))
        assert texts_of(forked)[row].count(BOS) == 1
        assert texts_of(forked)[:row] == texts_of(plain)[:row]
        later = (forked.trace.row == row) & (forked.trace.step > 1)
        touched += bool((forked.trace.operation[later] != INSERT).any())
    assert touched > 0
    with pytest.raises(ValueError, match="the text has no position 3 in step 1"):
        predict.fork(MODEL, batch, seeds, UserEdit(0, 1, LIMIT, BOS))
