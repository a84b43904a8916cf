"""The laws of the samplers: by enumeration of the transitions, and of texts really drawn."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from xlm.modules import Cosine, Linear, LogLinear, NoiseSchedule
from xlm.modules.testing import replay
from xlm_mdlm import (
    Ancestral,
    ConfidenceOrder,
    FirstHitting,
    MDLMExample,
    MDLMPrediction,
    MDLMPredictor,
    MDLMPromptCollator,
    MDLMRotary,
    Remasking,
    Sampler,
)
from xlm_mdlm.process_mdlm import RemaskRule, remask_probability, time_grid, unmask_probability

from .exact_mdlm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    Law,
    Prediction,
    TableNetwork,
    any_order_law,
    assert_drawn_from,
    chain_law,
    masks,
    oracle,
    prompt_batch,
    random_data,
    step_law,
    total_variation,
    with_tokens,
)

LENGTH = 3
START = (MASK,) * LENGTH
TEXT_IDS = range(FIRST, FIRST + 2)
ALL_IDS = [PAD, EOS, *TEXT_IDS]
LOG_LINEAR, COSINE = LogLinear(), Cosine()


def network(length: int = LENGTH, num_tokens: int = 2, seed: int = 5) -> TableNetwork:
    return TableNetwork(length=length, vocab_size=FIRST + num_tokens, seed=seed)


def predictor(
    sampler: Sampler,
    *,
    schedule: NoiseSchedule = LOG_LINEAR,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    window_length: int | None = None,
    stride: int | None = None,
) -> MDLMPredictor:
    return MDLMPredictor(
        schedule=schedule,
        sampler=sampler,
        mask_id=MASK,
        pad_id=PAD,
        eos_id=EOS,
        suppressed_ids=[BOS],
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        window_length=window_length,
        stride=stride,
    )


def draw(
    predict: MDLMPredictor, model: TableNetwork, rows: int, *, start: Cells = START, may_end: bool = False
) -> MDLMPrediction:
    seeds = torch.arange(rows) * 7919 + 11
    return predict(model, prompt_batch(start, rows, may_end=may_end), seeds, trace=True)


def texts(prediction: MDLMPrediction) -> list[Cells]:
    rows = zip(prediction.ids.tolist(), prediction.lengths.tolist(), strict=True)
    return [tuple(ids[:length]) for ids, length in rows]


def transitions(
    schedule: NoiseSchedule, num_steps: int, rule: RemaskRule = "cap", eta: float = 0.0
) -> tuple[list[float], list[float]]:
    """The package's own probabilities of unmasking and of masking again, step by step."""
    times = time_grid(num_steps)
    sigma = remask_probability(schedule, times[:-1], times[1:], rule=rule, eta=eta)
    unmask = unmask_probability(schedule, times[:-1], times[1:], remask=sigma)
    return unmask.tolist(), sigma.tolist()


# The exact law of the ancestral sampler


def test_ancestral_law_approaches_that_of_the_data_like_1_over_n() -> None:
    """With the best network. Its distance halves whenever the steps double."""
    data = random_data(length=3, num_tokens=3, seed=6)
    distances = [
        total_variation(chain_law(oracle(data), START, transitions(LOG_LINEAR, number)[0]), data)
        for number in (4, 8, 16, 32, 64, 128)
    ]
    assert distances == pytest.approx([0.1085, 0.0558, 0.0283, 0.0142, 0.0071, 0.0036], abs=1e-4)
    ratios = [before / after for before, after in itertools.pairwise(distances)]
    assert all(1.93 < ratio < 2.03 for ratio in ratios), ratios


@pytest.mark.parametrize("schedule", [LOG_LINEAR, COSINE], ids=repr)
def test_transitions_give_each_cell_its_step(schedule: NoiseSchedule) -> None:
    """Bernoulli draws in each step, and one draw of the step per cell, as the sampler does: the same law."""
    predict = network().prediction(TEXT_IDS)
    unmask, _ = transitions(schedule, 4)
    stay = [1.0, *np.cumprod([1 - value for value in unmask[:-1]]).tolist(), 0.0]
    shares = [before - after for before, after in itertools.pairwise(stay)]
    distance = total_variation(chain_law(predict, START, unmask), step_law(predict, START, shares))
    assert distance < 1e-14


def test_any_network_approaches_its_any_order_law() -> None:
    predict = network().prediction(TEXT_IDS)
    limit = any_order_law(predict, START)
    distances = [
        total_variation(chain_law(predict, START, transitions(COSINE, number)[0]), limit)
        for number in (16, 32, 64, 128)
    ]
    assert distances[0] > 1e-3
    assert all(before > 1.8 * after for before, after in itertools.pairwise(distances)), distances


def test_one_cell_at_a_time_is_exact_for_the_best_network() -> None:
    data = random_data(length=3, num_tokens=3, seed=6)
    assert total_variation(any_order_law(oracle(data), START), data) < 1e-15


# Texts that are really drawn


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", [LOG_LINEAR, COSINE], ids=repr)
def test_ancestral_draws_follow_the_chain(num_steps: int, schedule: NoiseSchedule) -> None:
    """The steps that evaluate nothing are skipped, the last one draws tokens too."""
    model = network()
    law = chain_law(model.prediction(TEXT_IDS), START, transitions(schedule, num_steps)[0])
    prediction = draw(predictor(Ancestral(num_steps), schedule=schedule), model, 8000)
    assert_drawn_from(texts(prediction), law)


def test_first_hitting_draws_follow_the_any_order_law() -> None:
    model = network()
    law = any_order_law(model.prediction(TEXT_IDS), START)
    prediction = draw(predictor(FirstHitting()), model, 8000)
    assert_drawn_from(texts(prediction), law)
    assert prediction.nfe.tolist() == [LENGTH] * 8000


def test_the_test_of_draws_tells_laws_apart() -> None:
    model = network()
    law = any_order_law(model.prediction(TEXT_IDS), START)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(texts(draw(predictor(Ancestral(1)), model, 8000)), law)


@pytest.mark.parametrize(("rule", "eta"), [("cap", 0.3), ("rescale", 0.6)])
def test_remasking_draws_follow_the_chain(rule: RemaskRule, eta: float) -> None:
    model = network()
    unmask, remask = transitions(LOG_LINEAR, 4, rule, eta)
    assert max(remask[1:]) > 0.1
    law = chain_law(model.prediction(TEXT_IDS), START, unmask, remask)
    prediction = draw(predictor(Remasking(4, rule, eta)), model, 8000)
    assert_drawn_from(texts(prediction), law)
    plain = chain_law(model.prediction(TEXT_IDS), START, transitions(LOG_LINEAR, 4)[0])
    assert total_variation(law, plain) > 0.005, "remasking changes nothing here"


def test_remasking_leaves_the_law_of_a_single_cell_alone() -> None:
    """At any time: the cell is clean with probability alpha, and then has a token by the prediction."""
    predict = network(length=1).prediction(TEXT_IDS)
    unmask, remask = transitions(LOG_LINEAR, 8, "rescale", 0.9)
    alphas = LOG_LINEAR.alpha(time_grid(8)).tolist()
    # The sampler starts from masks alone, the process at t = 1 with alpha = eps of clean cells.
    law: Law = {(MASK,): 1.0}
    for up, down, alpha in zip(unmask, remask, alphas[1:], strict=True):
        mass = law[(MASK,)]
        law = {
            (token,): law.get((token,), 0.0) * (1 - down) + mass * up * predict((MASK,), 0)[token]
            for token in TEXT_IDS
        }
        law[(MASK,)] = 1 - sum(law.values())
        assert law[(MASK,)] == pytest.approx(1 - alpha, abs=1.1e-3)
        for token in TEXT_IDS:
            assert law[(token,)] == pytest.approx(alpha * predict((MASK,), 0)[token], abs=1.1e-3)
    assert law[(MASK,)] == pytest.approx(0.0, abs=1e-15)


def confidence_law(predict: Prediction, start: Cells, counts: Sequence[int]) -> Law:
    """Law when step s writes the ``counts[s]`` masked cells with the largest top probability."""
    law: Law = {start: 1.0}
    for count in counts:
        after: defaultdict[Cells, float] = defaultdict(float)
        for cells, mass in law.items():
            best = sorted(masks(cells), key=lambda place: -max(predict(cells, place).values()))[:count]
            for drawn in itertools.product(*(predict(cells, place).items() for place in best)):
                tokens = {place: token for place, (token, _) in zip(best, drawn, strict=True)}
                after[with_tokens(cells, tokens)] += mass * math.prod(value for _, value in drawn)
        law = dict(after)
    return law


@pytest.mark.parametrize(("num_steps", "counts"), [(None, [1, 1, 1]), (2, [2, 1]), (1, [3]), (9, [1, 1, 1])])
def test_draws_by_confidence(num_steps: int | None, counts: list[int]) -> None:
    model = network()
    law = confidence_law(model.prediction(TEXT_IDS), START, counts)
    prediction = draw(predictor(ConfidenceOrder(num_steps, "top_prob")), model, 8000)
    assert_drawn_from(texts(prediction), law)
    assert prediction.nfe.tolist() == [len(counts)] * 8000


def test_infilling_follows_the_chain_from_the_given_cells() -> None:
    model = network()
    start = (MASK, FIRST + 1, MASK)
    for sampler, eta in ((Ancestral(3), 0.0), (Remasking(3, "cap", 0.4), 0.4)):
        unmask, remask = transitions(LOG_LINEAR, 3, "cap", eta)
        law = chain_law(model.prediction(TEXT_IDS), start, unmask, remask)
        assert {cells[1] for cells in law} == {FIRST + 1}
        assert_drawn_from(texts(draw(predictor(sampler), model, 4000, start=start)), law)


@pytest.mark.parametrize("sampler", [Ancestral(3), FirstHitting(), Remasking(3, "cap", 0.4)], ids=repr)
def test_rows_that_leave_at_their_end_keep_the_law_of_texts(sampler: Sampler) -> None:
    """EOS and PAD end a text. What would be written behind it is not, and costs no evaluation."""
    model = network(seed=8)
    predict = model.prediction(ALL_IDS)
    unmask, remask = transitions(LOG_LINEAR, 3, eta=0.4 if isinstance(sampler, Remasking) else 0.0)
    law = (
        any_order_law(predict, START)
        if isinstance(sampler, FirstHitting)
        else chain_law(predict, START, unmask, remask)
    )
    by_text: defaultdict[Cells, float] = defaultdict(float)
    for cells, mass in law.items():
        size = next((place for place, token in enumerate(cells) if token in (EOS, PAD)), LENGTH)
        by_text[cells[:size]] += mass
    prediction = draw(predictor(sampler), model, 8000, may_end=True)
    assert_drawn_from(texts(prediction), dict(by_text))
    if isinstance(sampler, FirstHitting):
        assert Counter(prediction.nfe.tolist()).keys() == {1, 2, 3}


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


def test_filtered_draws_follow_the_filtered_prediction() -> None:
    """Temperature 1/2 squares the probabilities, top_p = 1/2 keeps the tokens that reach one half."""
    model = network(num_tokens=3)
    plain = model.prediction(range(FIRST, FIRST + 3))

    def filtered(cells: Cells, cell: int) -> dict[int, float]:
        squares = {token: value**2 for token, value in plain(cells, cell).items()}
        total, kept = sum(squares.values()), dict[int, float]()
        for token in sorted(squares, key=lambda token: -squares[token]):
            if sum(kept.values()) < 0.5:
                kept[token] = squares[token] / total
        return {token: value / sum(kept.values()) for token, value in kept.items()}

    law = any_order_law(filtered, START)
    assert 1 < len(law) < 27
    predict = predictor(FirstHitting(), temperature=0.5, top_p=0.5)
    assert_drawn_from(texts(draw(predict, model, 8000)), law)


def test_mask_is_never_written() -> None:
    model = network()
    model.table[..., MASK] = 100.0
    for sampler in (Ancestral(4), FirstHitting(), ConfidenceOrder(2)):
        prediction = draw(predictor(sampler), model, 50)
        assert set(prediction.ids.flatten().tolist()) <= set(TEXT_IDS)


# What a network that is told the time is told


def test_ancestral_tells_the_time_of_the_step() -> None:
    model = network()
    draw(predictor(Ancestral(4), schedule=COSINE), model, 200)
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
    law: Law = {
        (*first, third): mass * predict((first[1], MASK), 1)[third]
        for first, mass in any_order_law(predict, (MASK, MASK)).items()
        for third in TEXT_IDS
    }
    prediction = draw(predictor(FirstHitting(), window_length=2, stride=1), model, 8000)
    assert_drawn_from(texts(prediction), law)
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
