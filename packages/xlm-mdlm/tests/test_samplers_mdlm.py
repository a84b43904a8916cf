"""The distributions of the samplers: by enumeration of the transitions, and of texts really drawn."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from xlm.modules import Cosine, LogLinear, NoiseSchedule
from xlm_mdlm import (
    Ancestral,
    ConfidenceOrder,
    FirstHitting,
    MDLMPrediction,
    MDLMPredictor,
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
    Distribution,
    Prediction,
    TableNetwork,
    any_order_distribution,
    assert_drawn_from,
    chain_distribution,
    masks,
    oracle,
    prompt_batch,
    random_data,
    step_distribution,
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


# The exact distribution of the ancestral sampler


def test_ancestral_distribution_approaches_that_of_the_data_like_1_over_n() -> None:
    """With the best network. Its distance halves whenever the steps double."""
    data = random_data(length=3, num_tokens=3, seed=6)
    distances = [
        total_variation(chain_distribution(oracle(data), START, transitions(LOG_LINEAR, number)[0]), data)
        for number in (4, 8, 16, 32, 64, 128)
    ]
    assert distances == pytest.approx([0.1085, 0.0558, 0.0283, 0.0142, 0.0071, 0.0036], abs=1e-4)
    ratios = [before / after for before, after in itertools.pairwise(distances)]
    assert all(1.93 < ratio < 2.03 for ratio in ratios), ratios


@pytest.mark.parametrize("schedule", [LOG_LINEAR, COSINE], ids=repr)
def test_transitions_give_each_cell_its_step(schedule: NoiseSchedule) -> None:
    """Bernoulli draws in each step, and one draw of the step per cell, as the sampler does: the same
    distribution."""
    predict = network().prediction(TEXT_IDS)
    unmask, _ = transitions(schedule, 4)
    stay = [1.0, *np.cumprod([1 - value for value in unmask[:-1]]).tolist(), 0.0]
    shares = [before - after for before, after in itertools.pairwise(stay)]
    distance = total_variation(
        chain_distribution(predict, START, unmask), step_distribution(predict, START, shares)
    )
    assert distance < 1e-14


def test_any_network_approaches_its_any_order_distribution() -> None:
    predict = network().prediction(TEXT_IDS)
    limit = any_order_distribution(predict, START)
    distances = [
        total_variation(chain_distribution(predict, START, transitions(COSINE, number)[0]), limit)
        for number in (16, 32, 64, 128)
    ]
    assert distances[0] > 1e-3
    assert all(before > 1.8 * after for before, after in itertools.pairwise(distances)), distances


def test_one_cell_at_a_time_is_exact_for_the_best_network() -> None:
    data = random_data(length=3, num_tokens=3, seed=6)
    assert total_variation(any_order_distribution(oracle(data), START), data) < 1e-15


# Texts that are really drawn


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("schedule", [LOG_LINEAR, COSINE], ids=repr)
def test_ancestral_draws_follow_the_chain(num_steps: int, schedule: NoiseSchedule) -> None:
    """The steps that evaluate nothing are skipped, the last one draws tokens too."""
    model = network()
    distribution = chain_distribution(model.prediction(TEXT_IDS), START, transitions(schedule, num_steps)[0])
    prediction = draw(predictor(Ancestral(num_steps), schedule=schedule), model, 8000)
    assert_drawn_from(texts(prediction), distribution)


def test_first_hitting_draws_follow_the_any_order_distribution() -> None:
    model = network()
    distribution = any_order_distribution(model.prediction(TEXT_IDS), START)
    prediction = draw(predictor(FirstHitting()), model, 8000)
    assert_drawn_from(texts(prediction), distribution)
    assert prediction.nfe.tolist() == [LENGTH] * 8000


def test_the_test_of_draws_distinguishes_distributions() -> None:
    model = network()
    distribution = any_order_distribution(model.prediction(TEXT_IDS), START)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_drawn_from(texts(draw(predictor(Ancestral(1)), model, 8000)), distribution)


@pytest.mark.parametrize(("rule", "eta"), [("cap", 0.3), ("rescale", 0.6)])
def test_remasking_draws_follow_the_chain(rule: RemaskRule, eta: float) -> None:
    model = network()
    unmask, remask = transitions(LOG_LINEAR, 4, rule, eta)
    assert max(remask[1:]) > 0.1
    distribution = chain_distribution(model.prediction(TEXT_IDS), START, unmask, remask)
    prediction = draw(predictor(Remasking(4, rule, eta)), model, 8000)
    assert_drawn_from(texts(prediction), distribution)
    plain = chain_distribution(model.prediction(TEXT_IDS), START, transitions(LOG_LINEAR, 4)[0])
    assert total_variation(distribution, plain) > 0.005, "remasking changes nothing here"


def test_remasking_leaves_the_distribution_of_a_single_cell_alone() -> None:
    """At any time: the cell is clean with probability alpha, and then has a token by the prediction."""
    predict = network(length=1).prediction(TEXT_IDS)
    unmask, remask = transitions(LOG_LINEAR, 8, "rescale", 0.9)
    alphas = LOG_LINEAR.alpha(time_grid(8)).tolist()
    # The sampler starts from masks alone, the process at t = 1 with alpha = eps of clean cells.
    distribution: Distribution = {(MASK,): 1.0}
    for up, down, alpha in zip(unmask, remask, alphas[1:], strict=True):
        mass = distribution[(MASK,)]
        distribution = {
            (token,): distribution.get((token,), 0.0) * (1 - down) + mass * up * predict((MASK,), 0)[token]
            for token in TEXT_IDS
        }
        distribution[(MASK,)] = 1 - sum(distribution.values())
        assert distribution[(MASK,)] == pytest.approx(1 - alpha, abs=1.1e-3)
        for token in TEXT_IDS:
            assert distribution[(token,)] == pytest.approx(alpha * predict((MASK,), 0)[token], abs=1.1e-3)
    assert distribution[(MASK,)] == pytest.approx(0.0, abs=1e-15)


def confidence_distribution(predict: Prediction, start: Cells, counts: Sequence[int]) -> Distribution:
    """Distribution when step s writes the ``counts[s]`` masked cells with the largest top probability."""
    distribution: Distribution = {start: 1.0}
    for count in counts:
        after: defaultdict[Cells, float] = defaultdict(float)
        for cells, mass in distribution.items():
            best = sorted(masks(cells), key=lambda place: -max(predict(cells, place).values()))[:count]
            for drawn in itertools.product(*(predict(cells, place).items() for place in best)):
                tokens = {place: token for place, (token, _) in zip(best, drawn, strict=True)}
                after[with_tokens(cells, tokens)] += mass * math.prod(value for _, value in drawn)
        distribution = dict(after)
    return distribution


@pytest.mark.parametrize(("num_steps", "counts"), [(None, [1, 1, 1]), (2, [2, 1]), (1, [3]), (9, [1, 1, 1])])
def test_draws_by_confidence(num_steps: int | None, counts: list[int]) -> None:
    model = network()
    distribution = confidence_distribution(model.prediction(TEXT_IDS), START, counts)
    prediction = draw(predictor(ConfidenceOrder(num_steps, "top_prob")), model, 8000)
    assert_drawn_from(texts(prediction), distribution)
    assert prediction.nfe.tolist() == [len(counts)] * 8000


def test_infilling_follows_the_chain_from_the_given_cells() -> None:
    model = network()
    start = (MASK, FIRST + 1, MASK)
    for sampler, eta in ((Ancestral(3), 0.0), (Remasking(3, "cap", 0.4), 0.4)):
        unmask, remask = transitions(LOG_LINEAR, 3, "cap", eta)
        distribution = chain_distribution(model.prediction(TEXT_IDS), start, unmask, remask)
        assert {cells[1] for cells in distribution} == {FIRST + 1}
        assert_drawn_from(texts(draw(predictor(sampler), model, 4000, start=start)), distribution)


@pytest.mark.parametrize("sampler", [Ancestral(3), FirstHitting(), Remasking(3, "cap", 0.4)], ids=repr)
def test_rows_that_leave_at_their_end_keep_the_distribution_of_texts(sampler: Sampler) -> None:
    """EOS and PAD end a text. What would be written behind it is not, and costs no evaluation."""
    model = network(seed=8)
    predict = model.prediction(ALL_IDS)
    unmask, remask = transitions(LOG_LINEAR, 3, eta=0.4 if isinstance(sampler, Remasking) else 0.0)
    distribution = (
        any_order_distribution(predict, START)
        if isinstance(sampler, FirstHitting)
        else chain_distribution(predict, START, unmask, remask)
    )
    by_text: defaultdict[Cells, float] = defaultdict(float)
    for cells, mass in distribution.items():
        size = next((place for place, token in enumerate(cells) if token in (EOS, PAD)), LENGTH)
        by_text[cells[:size]] += mass
    prediction = draw(predictor(sampler), model, 8000, may_end=True)
    assert_drawn_from(texts(prediction), dict(by_text))
    if isinstance(sampler, FirstHitting):
        assert Counter(prediction.nfe.tolist()).keys() == {1, 2, 3}
