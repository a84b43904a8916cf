"""What the samplers do with rows: budget, fixed tokens, masks, evaluations and traces."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from xlm.modules import Cosine, LogLinear, Polynomial
from xlm.modules.testing import CountingModel
from xlm_flexmdm import (
    FlexMDMExample,
    FlexMDMOutput,
    FlexMDMPrediction,
    FlexMDMPredictor,
    FlexMDMPromptBatch,
    FlexMDMPromptCollator,
    FlexMDMTrace,
    Interpolant,
)
from xlm_flexmdm.predictor_flexmdm import Rank

from .exact_flexmdm import integers, read_texts

PAD, MASK, BOS, FIRST, VOCAB = 0, 2, 4, 7, 12
LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))
RANKS: tuple[Rank, ...] = ("random", "left_to_right", "top_prob", "margin", "entropy")


class _Fake(nn.Module):
    """Gives g = ``gap`` * (1 - alpha) everywhere, and token logits by column and id of the row's cells."""

    def __init__(self, gap: float, logits: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.gap, self.logits = gap, logits

    def forward(
        self,
        input_ids: Tensor,
        time: Tensor,
        missing_chance: Tensor,
        attention_mask: Tensor,
        *,
        token_positions: Tensor,
        slot_positions: Tensor,
    ) -> FlexMDMOutput:
        width = input_ids.shape[1]
        assert attention_mask.flatten()[token_positions].all()
        assert (input_ids.flatten()[token_positions] == MASK).all()
        column = token_positions % width
        logits = torch.zeros(len(column), VOCAB) if self.logits is None else self.logits(column)
        gaps = self.gap * missing_chance[slot_positions // width]
        return FlexMDMOutput(logits, gaps, None)


def _favour_specials(column: Tensor) -> Tensor:
    """MASK and PAD are by far the likeliest; the token at column c should be FIRST + c % 5."""
    logits = torch.zeros(len(column), VOCAB)
    logits[torch.arange(len(column)), FIRST + column % 5] = 5.0
    logits[:, [PAD, MASK]] = 50.0
    return logits


def _predictor(**options: object) -> FlexMDMPredictor:
    arguments = {
        "interpolant": LINEAR,
        "mask_id": MASK,
        "pad_id": PAD,
        "num_steps": 10,
        "suppressed_ids": range(FIRST),
        **options,
    }
    return FlexMDMPredictor(**arguments)  # pyright: ignore[reportArgumentType]  # options of several types


def _predict(
    examples: Sequence[FlexMDMExample], model: nn.Module, *, max_length: int = 12, **options: object
) -> FlexMDMPrediction:
    collate = FlexMDMPromptCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, max_length=max_length)
    seeds = torch.tensor([example["seed"] for example in examples])
    return _predictor(**options)(model, collate(examples), seeds, trace=True)


def _texts(prediction: FlexMDMPrediction) -> list[list[int]]:
    return [list(text) for text in read_texts(prediction.ids, prediction.lengths)]


def _edits(prediction: FlexMDMPrediction, row: int) -> list[tuple[int, int, int, int]]:
    """Step, operation, position and token of each edit of a row."""
    trace = prediction.trace
    assert isinstance(trace, FlexMDMTrace)
    mine = trace.row == row
    fields = (trace.step, trace.operation, trace.position, trace.token)
    return list(zip(*(integers(field[mine]) for field in fields), strict=True))


def _infilling(target: list[int], fixed: list[int], seed: int) -> FlexMDMExample:
    return {
        "seed": seed,
        "target_ids": torch.tensor(target),
        "fixed": torch.tensor([place in fixed for place in range(len(target))]),
    }


# Room


def test_full_rows_take_no_more_and_keep_what_fits() -> None:
    """The published sampler drops all insertions of such a step and appends masks at the end of the row."""
    examples = [_infilling([20, 21, 22, 23], [1, 3], seed) for seed in range(50)]
    for limit in (4, 6, 9):
        prediction = _predict(examples, _Fake(gap=40.0), max_length=limit, num_steps=200)
        assert int(prediction.lengths.max()) == limit
        assert prediction.lengths.double().mean() > limit - 0.3
        for text in _texts(prediction):
            assert text[-1] == 23, "nothing stands behind a fixed end"
            assert text.count(21) == 1
            assert set(text) - {21, 23} <= set(range(FIRST, VOCAB))


def test_limit_of_new_tokens() -> None:
    examples = [_infilling([7, 8, 9], [0, 2], seed) for seed in range(20)]
    prediction = _predict(examples, _Fake(gap=40.0), max_new_tokens=3, num_steps=200)
    assert int(prediction.lengths.max()) == 5
    assert prediction.lengths.double().mean() > 4.7
    assert integers(_predict(examples, _Fake(gap=40.0), max_new_tokens=0).lengths) == [2] * 20


# Fixed tokens


@pytest.mark.parametrize(
    "fixed", [[0, 1], [2, 3], [4, 5], [0, 3, 4], [0, 1, 4, 5], [1, 2, 4], [0, 1, 2, 4, 5]]
)
def test_fixed_spans_stay_whole_wherever_they_are(fixed: list[int]) -> None:
    """Slots of prefix, middle and suffix move with their tokens when something comes in on their left.

    The reference shuts the slots by place: what is fixed further right gets torn.
    """
    given = [20, 21, 22, 23, 24, 25]
    examples = [_infilling(given, fixed, seed) for seed in range(40)]
    model = _Fake(gap=6.0, logits=lambda column: torch.zeros(len(column), 30).index_fill(1, _GIVEN, -1e9))
    prediction = _predict(examples, model, max_length=20)
    grown = 0
    for text in _texts(prediction):
        places = [text.index(given[place]) for place in fixed]
        assert places == sorted(places)
        for (first, second), (left, right) in zip(
            itertools.pairwise(fixed), itertools.pairwise(places), strict=True
        ):
            assert right - left == 1 or second - first > 1, f"a span is torn: {text}"
        assert places[0] == 0 or 0 not in fixed
        assert places[-1] == len(text) - 1 or 5 not in fixed
        grown += len(text) - len(fixed)
    assert grown > 100
    assert MASK not in prediction.ids


_GIVEN = torch.arange(20, 26)


def test_rows_without_open_slots_are_not_evaluated() -> None:
    examples = [_infilling([7, 8], [0, 1], seed=0), _infilling([7, 8], [], seed=1)]
    prediction = _predict(examples, _Fake(gap=5.0))
    assert _texts(prediction)[0] == [7, 8]
    assert prediction.nfe[0] == 0
    assert prediction.nfe[1] > 0
    alone = CountingModel(_Fake(gap=5.0))
    assert integers(_predict(examples[:1], alone).nfe) == [0]
    assert alone.calls == 0


# Masks


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("sampler", ["hazard_integrated", "tau_leaping"])
def test_only_masks_are_written_and_none_is_left(rank: Rank, sampler: str) -> None:
    """The published count can exceed the masks, and clean tokens are overwritten; here it cannot."""
    examples = [_infilling([20, 21, 22, 23, 24], [1, 3], seed) for seed in range(30)]
    prediction = _predict(
        examples, _Fake(gap=8.0, logits=_favour_specials), rank=rank, sampler=sampler, num_steps=4
    )
    for row, text in enumerate(_texts(prediction)):
        ids: list[int] = []
        last_step = 0
        for step, operation, position, token in _edits(prediction, row):
            assert step >= last_step
            last_step = step
            if operation == 0:
                assert token == MASK if step > 0 else token >= FIRST
                assert 0 <= position <= len(ids)
                ids.insert(position, token)
            else:
                assert ids[position] == MASK, "only a mask is written over"
                assert token >= FIRST
                ids[position] = token
        assert ids == text
        assert [token for token in text if token >= VOCAB] == [21, 23]
        assert MASK not in text


@pytest.mark.parametrize("rank", RANKS)
def test_few_tokens_are_left_to_the_last_step(rank: Rank) -> None:
    """Without the hazard in the count, as published, 63 of 100 tokens are unmasked by the last step."""
    examples: list[FlexMDMExample] = [{"seed": seed} for seed in range(60)]
    prediction = _predict(examples, _Fake(gap=3.0), rank=rank, num_steps=60, max_length=40)
    assert prediction.trace is not None
    writes = prediction.trace.operation == 1
    last = prediction.trace.step[writes] == 60
    assert writes.sum() > 200
    assert last.double().mean() < 0.15


def _masks(rows: int, number: int) -> FlexMDMPromptBatch:
    """Rows that begin with this number of masks, without budget for more."""
    ids = torch.full((rows, number + 1), MASK)
    ids[:, 0] = BOS
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "open_slots": torch.zeros_like(ids, dtype=torch.bool),
        "target_start": torch.ones(rows, dtype=torch.int64),
        "budget": torch.zeros(rows, dtype=torch.int64),
    }


def test_most_confident_masks_come_first() -> None:
    """A sharp distribution at even columns, a flat one at odd columns: the sharp are written earlier."""

    def logits(column: Tensor) -> Tensor:
        table = torch.zeros(len(column), VOCAB)
        table[:, FIRST] = torch.where(column % 2 == 0, 6.0, 0.5)
        return table

    examples: list[FlexMDMExample] = [{"seed": seed} for seed in range(40)]
    for rank in ("top_prob", "margin", "entropy"):
        prediction = _predict(examples, _Fake(4.0, logits), rank=rank, num_steps=8)
        random = _predict(examples, _Fake(4.0, logits), num_steps=8)
        assert _sharp_share(prediction) > _sharp_share(random) + 0.15


@pytest.mark.parametrize(
    ("rank", "surer", "other"),
    [
        ("top_prob", [0.50, 0.49, 0.01], [0.495, 0.2525, 0.2525]),
        ("margin", [0.50, 0.30, 0.20], [0.59, 0.395, 0.015]),
        ("entropy", [0.50, 0.49, 0.01], [0.68, 0.16, 0.16]),
    ],
)
def test_confidence_is_that_of_the_distribution_of_the_token(
    rank: Rank, surer: list[float], other: list[float]
) -> None:
    """Another softmax would make each pair change places, the temperature of the tokens the first pair."""
    for first, distributions in enumerate(((surer, other), (other, surer))):
        table = torch.full((3, VOCAB), -math.inf)
        table[1:, FIRST : FIRST + 3] = torch.tensor(distributions).log()
        predict = _predictor(rank=rank, temperature=0.5)
        model = _Fake(0.0, table.__getitem__)
        trace = predict(model, _masks(30, 2), torch.arange(30), trace=True).trace
        written = trace.operation == 1
        step = torch.zeros(30, 2, dtype=torch.int64)
        step[trace.row[written], trace.position[written]] = trace.step[written]
        apart = step[step[:, 0] != step[:, 1]]
        assert len(apart) > 10
        assert (apart.argmin(1) == first).all()


def _sharp_share(prediction: FlexMDMPrediction) -> float:
    """Share of FIRST, the token of sharp cells, among what is written before the last step."""
    trace = prediction.trace
    assert trace is not None
    early = (trace.operation == 1) & (trace.step < 8)
    return float((trace.token[early] == FIRST).double().mean())


def test_masks_from_left_to_right() -> None:
    prediction = _predict(
        [{"seed": seed} for seed in range(20)], _Fake(5.0), rank="left_to_right", num_steps=6
    )
    for row in range(20):
        ids: list[int] = []
        for _, operation, position, token in _edits(prediction, row):
            if operation == 1:
                assert MASK not in ids[:position]
            ids[position : position + operation] = [token]


def test_filters_apply_to_the_distribution_of_a_token() -> None:
    def logits(column: Tensor) -> Tensor:
        return torch.tensor([0.0] * FIRST + [0.1, 0.2, 0.5, 0.4, 0.3]).expand(len(column), VOCAB)

    examples: list[FlexMDMExample] = [{"seed": seed} for seed in range(30)]

    def drawn(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> set[int]:
        prediction = _predict(examples, _Fake(4.0, logits), temperature=temperature, top_k=top_k, top_p=top_p)
        return {token for text in _texts(prediction) for token in text}

    assert drawn(temperature=0.0) == drawn(top_k=1) == {9}
    assert drawn(top_k=2) == drawn(top_p=0.4) == {9, 10}
    assert drawn() == {7, 8, 9, 10, 11}


def test_mask_is_never_drawn_even_if_nothing_is_suppressed() -> None:
    prediction = _predict(
        [{"seed": seed} for seed in range(20)], _Fake(5.0, _favour_specials), suppressed_ids=()
    )
    exists = torch.arange(prediction.ids.shape[1]) < prediction.lengths.unsqueeze(1)
    assert exists.sum() > 20
    assert (prediction.ids[exists] == PAD).any(), "a favoured token that is not suppressed is drawn"
    assert MASK not in prediction.ids


# Evaluations


def test_each_step_sees_the_time_of_its_start() -> None:
    seen: list[tuple[float, float]] = []

    class Watch(_Fake):
        def forward(
            self, input_ids: Tensor, time: Tensor, missing_chance: Tensor, *args: Tensor, **kwargs: Tensor
        ):
            seen.append((float(time[0]), float(missing_chance[0])))
            return super().forward(input_ids, time, missing_chance, *args, **kwargs)

    interpolant = Interpolant(Cosine(eps=0), LogLinear(eps=0), time_input="alpha")
    _predict([{"seed": 0}], Watch(gap=3.0), interpolant=interpolant, num_steps=5)
    alphas = [math.sin(math.pi / 2 * n / 5) for n in range(5)]
    assert [time for time, _ in seen] == pytest.approx(alphas[: len(seen)])
    assert [missing for _, missing in seen] == pytest.approx([1 - alpha for alpha in alphas[: len(seen)]])


def test_network_is_not_asked_about_a_step_that_changes_nothing() -> None:
    """With more missing than the budget, every evaluation of a row inserts or writes something in it."""
    counting = CountingModel(_Fake(gap=1e4))
    prediction = _predict([{"seed": seed} for seed in range(12)], counting, max_length=3, num_steps=200)
    assert int(prediction.lengths.max()) == 3
    assert int(prediction.nfe.max()) <= 6, "at most one step for each insertion and each mask"
    assert counting.rows == int(prediction.nfe.sum())
    assert counting.calls == int(prediction.nfe.max()), "rows are evaluated together, each at its own time"
    for row in range(12):
        steps = {step for step, *_ in _edits(prediction, row)}
        assert len(steps) == prediction.nfe[row]
    assert prediction.trace is not None
    assert (prediction.trace.step.diff() >= 0).all()


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_number_of_evaluations_grows_with_the_logarithm_of_the_steps(steps: int) -> None:
    """A budget of 2 of which nothing comes: step N - n is evaluated with the probability 1 - exp(-2 / n)."""
    examples = [_infilling([7, 8, 9, 10], [1, 2], seed) for seed in range(200)]
    prediction = _predict(examples, _Fake(gap=0.0), max_length=4, num_steps=steps)
    expected = sum(1 - math.exp(-2 / n) for n in range(2, steps + 1))
    assert float(prediction.nfe.double().mean()) == pytest.approx(expected, abs=4 * math.sqrt(expected / 200))


def test_a_row_into_which_nothing_comes() -> None:
    example: FlexMDMExample = {"seed": 3, "prompt_ids": torch.tensor([9, 9, 9])}
    prediction = _predict([example], _Fake(gap=0.0))
    assert prediction.ids.shape == (1, 0)
    assert integers(prediction.lengths) == [0]
    assert 0 < int(prediction.nfe[0]) <= 9, "the last step inserts nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "num_steps must be at least 2"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be None or at least 1"),
        ({"top_p": 0.0}, r"top_p must be None or in \(0, 1\]"),
        ({"mask_id": PAD}, "mask_id must be another id than pad_id"),
        (
            {"interpolant": Interpolant(Polynomial(0.5), LogLinear(eps=0)), "sampler": "tau_leaping"},
            "use sampler='hazard_integrated'",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _predictor(**options)


@pytest.mark.parametrize(("option", "value"), [("sampler", "euler"), ("rank", "left")])
def test_names_that_are_refused(option: str, value: str) -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=rf"{option}(?s:.*)'{value}'"):
        _predictor(**{option: value})
