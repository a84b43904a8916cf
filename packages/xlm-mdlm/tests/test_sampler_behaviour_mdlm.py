"""Samplers of xlm-mdlm: cost, time input of the network, windows beyond the training length."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from xlm.modules import Linear, LogLinear
from xlm.modules.testing import replay
from xlm.modules.unmasking import Confidence
from xlm_mdlm import (
    Ancestral,
    ConfidenceOrder,
    FirstHitting,
    MDLMExample,
    MDLMPromptCollator,
    MDLMRotary,
    Remasking,
    Sampler,
)
from xlm_mdlm.process_mdlm import time_grid

from .exact_mdlm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    Distribution,
    any_order_distribution,
    assert_drawn_from,
)
from .test_samplers_mdlm import COSINE, LENGTH, START, TEXT_IDS, draw, network, predictor, texts

# Cost


def test_evaluations_are_the_steps_that_write() -> None:
    """At most min(N, L) for a row; sum_k 1 - (1 - q_k)^L in the mean, q_k the share of step k."""
    model, rows = network(), 4000
    for num_steps in (1, 2, 5, 1000):
        model.rows.clear()
        prediction = draw(predictor(Ancestral(num_steps)), model, rows)
        nfe = prediction.nfe
        assert int(nfe.max()) == len(model.rows) <= min(num_steps, LENGTH)
        assert int(nfe.sum()) == sum(model.rows)
        expected = num_steps * (1 - (1 - 1 / num_steps) ** LENGTH)
        assert float(nfe.double().mean()) == pytest.approx(expected, abs=4 * 0.6 / math.sqrt(rows))
        trace = prediction.trace
        assert trace is not None
        written = trace.operation == 1
        turns = {(row, step) for row, step in zip(trace.row[written].tolist(), trace.step[written].tolist())}  # noqa: B905
        assert len(turns) == int(nfe.sum())


@pytest.mark.parametrize(
    ("num_steps", "shares"), [(2, [3, 2]), (3, [2, 2, 1]), (4, [2, 1, 1, 1]), (9, [1] * 5)]
)
def test_confidence_order_writes_equal_shares(num_steps: int, shares: list[int]) -> None:
    trace = draw(predictor(ConfidenceOrder(num_steps)), network(length=5), 3, start=(MASK,) * 5).trace
    assert trace is not None
    assert torch.bincount(trace.step).tolist() == [15, *(3 * share for share in shares)]


@pytest.mark.parametrize(
    ("kind", "surer", "other"),
    [
        ("top_prob", [0.50, 0.49, 0.01], [0.495, 0.2525, 0.2525]),
        ("margin", [0.50, 0.30, 0.20], [0.59, 0.395, 0.015]),
        ("entropy", [0.50, 0.49, 0.01], [0.68, 0.16, 0.16]),
    ],
)
def test_confidence_is_that_of_the_prediction(
    kind: Confidence, surer: list[float], other: list[float]
) -> None:
    """Another softmax would make each pair change places, the temperature of the tokens the first pair."""
    for first, distributions in enumerate(((surer, other), (other, surer))):
        model = network(length=2, num_tokens=3)
        model.table[:, 1:, FIRST:] = torch.tensor(distributions, dtype=torch.float64).log()
        trace = draw(
            predictor(ConfidenceOrder(kind=kind), temperature=0.5), model, 5, start=(MASK,) * 2
        ).trace
        assert trace is not None
        assert trace.position[trace.step == 1].tolist() == [first] * 5


def test_remasking_evaluates_rows_in_the_steps_that_write_only() -> None:
    model = network()
    prediction = draw(predictor(Remasking(50, "cap", 0.1)), model, 500)
    assert int(prediction.nfe.max()) == len(model.rows) < 50
    assert int(prediction.nfe.sum()) == sum(model.rows)
    trace = prediction.trace
    assert trace is not None
    masked_again = (trace.operation == 1) & (trace.token == MASK)
    assert masked_again.any()
    assert len(masked_again) == int(masked_again.sum()) * 2 + 500 * LENGTH * 2, "each is written once more"


def test_written_cells_never_change_without_remasking() -> None:
    for sampler in (Ancestral(4), FirstHitting(), ConfidenceOrder(2), Remasking(4, "cap", 0.0)):
        trace = draw(predictor(sampler), network(), 200).trace
        assert trace is not None
        written = trace.operation == 1
        cells = list(zip(trace.row[written].tolist(), trace.position[written].tolist(), strict=True))
        assert len(cells) == len(set(cells)) == 200 * LENGTH


# What the filters act on


def test_filters_change_what_is_written_not_when() -> None:
    """They act on the prediction, never on the probabilities of unmasking."""

    def cells_in_order(temperature: float, top_k: int | None) -> list[list[int]]:
        predict = predictor(Ancestral(8), temperature=temperature, top_k=top_k)
        trace = draw(predict, network(), 300).trace
        assert trace is not None
        return torch.stack([trace.step, trace.row, trace.operation, trace.position]).tolist()

    assert cells_in_order(1.0, None) == cells_in_order(0.3, None) == cells_in_order(1.0, 1)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.5), (2, None)])
def test_filtered_draws_follow_the_filtered_prediction(top_k: int | None, top_p: float | None) -> None:
    """Temperature 1/2 squares the probabilities; the filters keep two tokens, or those up to one half."""
    model = network(num_tokens=3)
    plain = model.prediction(range(FIRST, FIRST + 3))

    def filtered(cells: Cells, cell: int) -> dict[int, float]:
        squares = {token: value**2 for token, value in plain(cells, cell).items()}
        total, kept = sum(squares.values()), dict[int, float]()
        for token in sorted(squares, key=lambda token: -squares[token]):
            if len(kept) < (top_k or 3) and sum(kept.values()) < (top_p or 1.0):
                kept[token] = squares[token] / total
        return {token: value / sum(kept.values()) for token, value in kept.items()}

    distribution = any_order_distribution(filtered, START)
    assert 1 < len(distribution) < 27
    predict = predictor(FirstHitting(), temperature=0.5, top_k=top_k, top_p=top_p)
    assert_drawn_from(texts(draw(predict, model, 8000)), distribution)


def test_mask_is_never_written() -> None:
    model = network()
    model.table[..., MASK] = 100.0
    for sampler in (Ancestral(4), FirstHitting(), ConfidenceOrder(2)):
        prediction = draw(predictor(sampler), model, 50)
        assert set(prediction.ids.flatten().tolist()) <= set(TEXT_IDS)


# Time input of a network that is conditioned on time


@pytest.mark.parametrize("sampler", [Ancestral(4), Remasking(4, "cap", 0.3)], ids=repr)
def test_steps_tell_the_time_that_they_start_from(sampler: Sampler) -> None:
    model = network()
    draw(predictor(sampler, schedule=COSINE), model, 200)
    possible = [-math.log(max(alpha, 1e-4)) for alpha in COSINE.alpha(time_grid(4)[:-1]).tolist()]
    told = sorted({round(noise, 12) for noises in model.noises for noise in noises})
    assert told == pytest.approx(sorted(possible), abs=1e-9)


def test_ancestral_tells_each_row_its_own_time() -> None:
    """One cell, two steps: it is written from t = 1 by half of the rows, from t = 1/2 by the others."""
    model, rows = network(length=1), 2000
    draw(predictor(Ancestral(2)), model, rows, start=(MASK,))
    (noises,) = model.noises
    first, second = (-math.log(1 - 0.999 * time) for time in (1.0, 0.5))
    counts = Counter(round(noise, 9) for noise in noises)
    assert counts.keys() == {round(first, 9), round(second, 9)}
    assert counts[round(first, 9)] == pytest.approx(rows / 2, abs=4 * math.sqrt(rows) / 2)


def test_first_hitting_tells_falling_noise() -> None:
    """The mask rates at the hits are the order statistics of L uniforms: k/(L + 1) in the mean."""
    model, rows = network(), 4000
    draw(predictor(FirstHitting(), schedule=LogLinear(eps=0.0)), model, rows)
    rates = 1 - torch.tensor(model.noises, dtype=torch.float64).neg().exp()
    assert (rates.diff(dim=0) < 0).all()
    assert rates.mean(1).tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 4], abs=4 * 0.22 / math.sqrt(rows))


def test_first_hitting_starts_where_an_incomplete_schedule_ends() -> None:
    """With alpha(1) = 0.2 the mask rates are those order statistics, scaled to [0, 0.8]."""
    model, rows, schedule = network(), 4000, Linear(0.0, math.log(5))
    assert float(schedule.alpha(torch.ones((), dtype=torch.float64))) == pytest.approx(0.2)
    draw(predictor(FirstHitting(), schedule=schedule), model, rows)
    rates = 1 - torch.tensor(model.noises, dtype=torch.float64).neg().exp()
    assert rates.max() <= 0.8
    error = 0.8 * 0.22 / math.sqrt(rows)
    assert rates.mean(1).tolist() == pytest.approx([0.8 * k / 4 for k in (3, 2, 1)], abs=4 * error)


def test_confidence_order_tells_the_masked_share() -> None:
    model = network()
    draw(predictor(ConfidenceOrder(), schedule=LogLinear(eps=0.0)), model, 2)
    rates = [1 - math.exp(-noises[0]) for noises in model.noises]
    assert rates == pytest.approx([1 - 1e-4, 2 / 3, 1 / 3], abs=1e-9)


@pytest.mark.parametrize("sampler", [Ancestral(3), FirstHitting(), Remasking(5), ConfidenceOrder()], ids=repr)
def test_incomplete_schedules_leave_no_mask(sampler: Sampler) -> None:
    """Linear noise that never reaches alpha = 1 nor 0."""
    prediction = draw(predictor(sampler, schedule=Linear(0.1, 1.0)), network(), 200)
    assert prediction.lengths.tolist() == [LENGTH] * 200
    assert set(prediction.ids.flatten().tolist()) <= set(TEXT_IDS)


# Beyond the length of the training


def test_windows_write_on_from_the_last_cells() -> None:
    """Three cells through a window of two: the first two together, then the third given the second."""
    model = network(length=2)
    predict = model.prediction(TEXT_IDS)
    distribution: Distribution = {
        (*first, third): mass * predict((first[1], MASK), 1)[third]
        for first, mass in any_order_distribution(predict, (MASK, MASK)).items()
        for third in TEXT_IDS
    }
    prediction = draw(predictor(FirstHitting(), window_length=2, stride=1), model, 8000)
    assert_drawn_from(texts(prediction), distribution)
    assert prediction.nfe.tolist() == [3] * 8000


def test_windows_draw_independently() -> None:
    """A network that looks at nothing: windows with equal columns and turns must not repeat their draws."""
    model = network(length=2)
    model.table[:] = 0.0
    written = torch.tensor(
        texts(draw(predictor(Ancestral(2), window_length=2, stride=2), model, 4000, start=(MASK,) * 4))
    )
    same = (written[:, :2] == written[:, 2:]).double().mean()
    assert float(same) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


def test_turns_draw_independently() -> None:
    """A cell that is written, masked and written again by a network that looks at nothing."""
    model = network(length=1)
    model.table[:] = 0.0
    trace = draw(predictor(Remasking(6, "rescale", 1.0)), model, 4000, start=(MASK,)).trace
    assert trace is not None
    tokens: defaultdict[int, list[int]] = defaultdict(list)
    for row, token in zip(trace.row.tolist(), trace.token.tolist(), strict=True):
        if token != MASK:
            tokens[row].append(token)
    pairs = [pair for written in tokens.values() for pair in itertools.pairwise(written)]
    assert len(pairs) > 1000
    same = sum(before == after for before, after in pairs)
    assert same / len(pairs) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(pairs)))


def test_windows_end_with_the_text() -> None:
    """A text that ends in its first window is not continued; the trace leads to what is returned."""
    model = network(length=2, seed=8)
    prediction = draw(
        predictor(FirstHitting(), window_length=2, stride=2), model, 500, start=(MASK,) * 4, may_end=True
    )
    ended = prediction.lengths < 2
    assert ended.any()
    assert (~ended).any()
    assert int(prediction.nfe[ended].max()) <= 2 < int(prediction.nfe.max())


def test_windows_with_prompts_and_given_cells_do_not_depend_on_other_rows() -> None:
    """Rows of several lengths; what the network sees is prompt, BOS and four cells at most."""
    network = MDLMRotary(vocab_size=9, d_model=16, num_layers=1, num_heads=2).double().eval()
    widths: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    collate = MDLMPromptCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS)
    examples: list[MDLMExample] = []
    for length in (9, 3, 6):
        target, fixed = torch.arange(length) % 5 + FIRST, torch.arange(length) % 3 == 1
        examples.append({"seed": 0, "prompt_ids": target[: length % 4], "target_ids": target, "fixed": fixed})
    for sampler in (Ancestral(3), Remasking(5, "cap", 0.3), ConfidenceOrder(2)):
        predict = predictor(sampler, window_length=4, stride=3)
        together = predict(network, collate(examples), torch.arange(3), trace=True)
        assert max(widths) <= 3 + 1 + 4
        assert together.trace is not None
        for row, example in enumerate(examples):
            assert "target_ids" in example
            assert "fixed" in example
            alone = predict(network, collate([example]), torch.tensor([row]))
            assert texts(alone)[0] == texts(together)[row]
            assert alone.nfe[0] == together.nfe[row]
            ids = together.ids[row, : int(together.lengths[row])]
            assert torch.equal(ids[example["fixed"]], example["target_ids"][example["fixed"]])
            assert replay(together.trace, row) == ids.tolist()
        assert (together.trace.step.diff() >= 0).all()


# Options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ancestral(0), "num_steps must be at least 1, got 0"),
        (lambda: Remasking(0), "num_steps must be at least 1, got 0"),
        (lambda: Remasking(4, "cap", 1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: ConfidenceOrder(0), "num_steps must be at least 1, got 0"),
        (lambda: predictor(Ancestral(), temperature=-1.0), "temperature must be at least 0"),
        (lambda: predictor(Ancestral(), top_k=0), "top_k must be None or at least 1"),
        (lambda: predictor(Ancestral(), top_p=0.0), r"top_p must be None or in \(0, 1\]"),
        (lambda: predictor(Ancestral(), stride=2), "stride must be None without window_length"),
        (lambda: predictor(Ancestral(), window_length=2), "stride must be from 1 to window_length=2"),
        (
            lambda: predictor(Ancestral(), window_length=2, stride=3),
            "stride must be from 1 to window_length=2",
        ),
        (
            lambda: predictor(Ancestral(), window_length=0, stride=1),
            "window_length must be None or at least 1",
        ),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
