"""What is mdlm's own in sampling: transitions, the limits of the chain, times of the network, windows.

The distribution of every rule is tested in xlm-modules.
"""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, CosineSquared, Geometric, Linear, LogLinear, NoiseSchedule, Polynomial, Sine
from xlm.modules.samplers import RuleName, Sampler, compose
from xlm.modules.samplers.process import remask_probability, time_grid, unmask_probability
from xlm.modules.testing import replay
from xlm_mdlm import (
    MDLMExample,
    MDLMPrediction,
    MDLMPredictor,
    MDLMPromptCollator,
    MDLMRotary,
)
from xlm_mdlm.types_mdlm import noise_of_alpha

from .exact_mdlm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    Distribution,
    TableNetwork,
    any_order_distribution,
    assert_drawn_from,
    chain_distribution,
    oracle,
    prompt_batch,
    random_data,
    total_variation,
)

LENGTH = 3
START = (MASK,) * LENGTH
TEXT_IDS = range(FIRST, FIRST + 2)
LOG_LINEAR, COSINE = LogLinear(), Cosine()
REMASKING = compose("remdm_cap", num_steps=5, eta=0.3)
MASK_OF_REFERENCE = 2
SCHEDULES: list[NoiseSchedule] = [
    LogLinear(),
    LogLinear(eps=0.0),
    Cosine(),
    CosineSquared(),
    Sine(),
    Polynomial(2.0),
    Linear(1e-3, 7.0),
    Geometric(1e-4, 20.0),
]
EACH_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


def network(length: int = LENGTH, num_tokens: int = 2, seed: int = 5) -> TableNetwork:
    return TableNetwork(length=length, vocab_size=FIRST + num_tokens, seed=seed)


def predictor(
    sampler: Sampler | RuleName,
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


def transitions(schedule: NoiseSchedule, num_steps: int) -> list[float]:
    """The probabilities of unmasking, step by step."""
    times = time_grid(num_steps)
    return unmask_probability(schedule, times[:-1], times[1:]).tolist()


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The transitions


def test_transition_is_the_published_posterior(reference: dict[str, Tensor]) -> None:
    """q(x_s | x_t) of a masked cell: unmask * p_theta, and the rest at MASK."""
    t = reference["in.t"]
    unmask = unmask_probability(LogLinear(), t, t - reference["in.dt"])[:, None, None]
    prediction = reference["official.p_x0.f64"]
    distribution = unmask * prediction
    distribution[..., MASK_OF_REFERENCE] = 1 - unmask[..., 0]
    masked = reference["in.xt"] == MASK_OF_REFERENCE
    assert masked.any()
    torch.testing.assert_close(
        distribution[masked], reference["derived.posterior_q_xs_given_xt.f64"][masked], rtol=1e-6, atol=1e-9
    )


@EACH_SCHEDULE
def test_transitions_compose(schedule: NoiseSchedule) -> None:
    """Still masked after t -> r -> s is still masked after t -> s."""
    t, r, s = float64(1.0, 0.9, 0.5, 1.0), float64(0.7, 0.3, 0.49, 0.999), float64(0.2, 1e-3, 0.1, 0.0)
    stay = 1 - unmask_probability(schedule, t, s)
    by_steps = (1 - unmask_probability(schedule, t, r)) * (1 - unmask_probability(schedule, r, s))
    torch.testing.assert_close(by_steps, stay, rtol=1e-10, atol=1e-14)
    assert ((stay >= 0) & (stay < 1)).all()


def test_a_single_step_unmasks_everything() -> None:
    """With alpha_1 = 0 too, where the largest sigma is 0 / 0."""
    schedule = LogLinear(eps=0.0)
    sigma = remask_probability(schedule, float64(1.0), float64(0.0), rule="cap", eta=1.0)
    assert sigma.tolist() == [0.0]
    assert unmask_probability(schedule, float64(1.0), float64(0.0), remask=sigma).tolist() == [1.0]


def test_noise_is_the_total_noise_up_to_its_cut() -> None:
    t = float64(0.0, 0.25, 0.5, 1.0)
    noise = noise_of_alpha(LogLinear(eps=1e-3).alpha(t))
    assert noise.tolist() == pytest.approx([-math.log(1 - 0.999 * time) for time in t.tolist()], abs=1e-14)
    assert math.copysign(1, noise[0]) == 1
    assert noise_of_alpha(float64(0.0, 1e-9, 1.0 + 1e-15)).tolist() == [-math.log(1e-4)] * 2 + [0.0]


# The exact distribution of the ancestral sampler


def test_ancestral_distribution_approaches_that_of_the_data_like_1_over_n() -> None:
    """With the best network. Its distance halves whenever the steps double."""
    data = random_data(length=3, num_tokens=3, seed=6)
    distances = [
        total_variation(chain_distribution(oracle(data), START, transitions(LOG_LINEAR, number)), data)
        for number in (4, 8, 16, 32, 64, 128)
    ]
    assert distances == pytest.approx([0.1085, 0.0558, 0.0283, 0.0142, 0.0071, 0.0036], abs=1e-4)
    ratios = [before / after for before, after in itertools.pairwise(distances)]
    assert all(1.93 < ratio < 2.03 for ratio in ratios), ratios


def test_one_cell_at_a_time_is_exact_for_the_best_network() -> None:
    data = random_data(length=3, num_tokens=3, seed=6)
    assert total_variation(any_order_distribution(oracle(data), START), data) < 1e-15


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("schedule", [LOG_LINEAR, COSINE], ids=repr)
def test_ancestral_draws_follow_the_chain(num_steps: int, schedule: NoiseSchedule) -> None:
    """The steps that evaluate nothing are skipped, the last one draws tokens too."""
    model = network()
    distribution = chain_distribution(model.prediction(TEXT_IDS), START, transitions(schedule, num_steps))
    prediction = draw(predictor(compose("ancestral", num_steps=num_steps), schedule=schedule), model, 8000)
    assert_drawn_from(texts(prediction), distribution)


# Evaluations


def test_evaluations_are_the_steps_that_write() -> None:
    """At most min(N, L) for a row; sum_k 1 - (1 - q_k)^L in the mean, q_k the share of step k."""
    model, rows = network(), 4000
    for num_steps in (1, 2, 5, 1000):
        model.rows.clear()
        prediction = draw(predictor(compose("ancestral", num_steps=num_steps)), model, rows)
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
    prediction = draw(predictor(compose("remdm_cap", num_steps=50, eta=0.1)), model, 500)
    assert int(prediction.nfe.max()) == len(model.rows) < 50
    assert int(prediction.nfe.sum()) == sum(model.rows)
    trace = prediction.trace
    assert trace is not None
    masked_again = (trace.operation == 1) & (trace.token == MASK)
    assert masked_again.any()
    assert len(masked_again) == int(masked_again.sum()) * 2 + 500 * LENGTH * 2, "each is written once more"


def test_mask_is_never_written() -> None:
    model = network()
    model.table[..., MASK] = 100.0
    rules: tuple[RuleName, ...] = ("ancestral", "first_hitting", "confidence", "p2", "remdm_loop")
    for rule in rules:
        prediction = draw(predictor(rule), model, 50)
        assert set(prediction.ids.flatten().tolist()) <= set(TEXT_IDS)


# Time input of a network that is conditioned on time


@pytest.mark.parametrize("rule", ["ancestral", "remdm_cap"])
def test_steps_tell_the_time_that_they_start_from(rule: RuleName) -> None:
    model = network()
    sampler = compose(rule, num_steps=4, eta=0.3 if rule == "remdm_cap" else None)
    draw(predictor(sampler, schedule=COSINE), model, 200)
    possible = [-math.log(max(alpha, 1e-4)) for alpha in COSINE.alpha(time_grid(4)[:-1]).tolist()]
    received = sorted({round(noise, 12) for noises in model.noises for noise in noises})
    assert received == pytest.approx(sorted(possible), abs=1e-9)


def test_ancestral_tells_each_row_its_own_time() -> None:
    """One cell, two steps: it is written from t = 1 by half of the rows, from t = 1/2 by the others."""
    model, rows = network(length=1), 2000
    draw(predictor(compose("ancestral", num_steps=2)), model, rows, start=(MASK,))
    (noises,) = model.noises
    first, second = (-math.log(1 - 0.999 * time) for time in (1.0, 0.5))
    counts = Counter(round(noise, 9) for noise in noises)
    assert counts.keys() == {round(first, 9), round(second, 9)}
    assert counts[round(first, 9)] == pytest.approx(rows / 2, abs=4 * math.sqrt(rows) / 2)


def test_first_hitting_tells_falling_noise() -> None:
    """The mask rates at the hits are the order statistics of L uniforms: k/(L + 1) in the mean."""
    model, rows = network(), 4000
    draw(predictor("first_hitting", schedule=LogLinear(eps=0.0)), model, rows)
    rates = 1 - torch.tensor(model.noises, dtype=torch.float64).neg().exp()
    assert (rates.diff(dim=0) < 0).all()
    assert rates.mean(1).tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 4], abs=4 * 0.22 / math.sqrt(rows))


def test_first_hitting_starts_where_an_incomplete_schedule_ends() -> None:
    """With alpha(1) = 0.2 the mask rates are those order statistics, scaled to [0, 0.8]."""
    model, rows, schedule = network(), 4000, Linear(0.0, math.log(5))
    assert float(schedule.alpha(torch.ones((), dtype=torch.float64))) == pytest.approx(0.2)
    draw(predictor("first_hitting", schedule=schedule), model, rows)
    rates = 1 - torch.tensor(model.noises, dtype=torch.float64).neg().exp()
    assert rates.max() <= 0.8
    error = 0.8 * 0.22 / math.sqrt(rows)
    assert rates.mean(1).tolist() == pytest.approx([0.8 * k / 4 for k in (3, 2, 1)], abs=4 * error)


def test_confidence_order_tells_the_masked_share() -> None:
    model = network()
    draw(predictor("confidence", schedule=LogLinear(eps=0.0)), model, 2)
    rates = [1 - math.exp(-noises[0]) for noises in model.noises]
    assert rates == pytest.approx([1 - 1e-4, 2 / 3, 1 / 3], abs=1e-9)


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", REMASKING, "confidence"], ids=repr)
def test_incomplete_schedules_leave_no_mask(sampler: Sampler | RuleName) -> None:
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
    prediction = draw(predictor("first_hitting", window_length=2, stride=1), model, 8000)
    assert_drawn_from(texts(prediction), distribution)
    assert prediction.nfe.tolist() == [3] * 8000


def test_windows_draw_independently() -> None:
    """A network that looks at nothing: windows with equal columns and turns must not repeat their draws."""
    model = network(length=2)
    model.table[:] = 0.0
    predict = predictor(compose("ancestral", num_steps=2), window_length=2, stride=2)
    written = torch.tensor(texts(draw(predict, model, 4000, start=(MASK,) * 4)))
    same = (written[:, :2] == written[:, 2:]).double().mean()
    assert float(same) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8000))


def test_turns_draw_independently() -> None:
    """A cell that is written, masked and written again by a network that looks at nothing."""
    model = network(length=1)
    model.table[:] = 0.0
    trace = draw(predictor(compose("remdm_rescale", num_steps=6, eta=1.0)), model, 4000, start=(MASK,)).trace
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
        predictor("first_hitting", window_length=2, stride=2), model, 500, start=(MASK,) * 4, may_end=True
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
    for sampler in (compose("ancestral", num_steps=3), REMASKING, compose("confidence", num_steps=2)):
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
        (lambda: predictor("ancestral", temperature=-1.0), "temperature must be at least 0"),
        (lambda: predictor("ancestral", top_k=0), "top_k must be None or at least 1"),
        (lambda: predictor("ancestral", top_p=0.0), r"top_p must be None or in \(0, 1\]"),
        (lambda: predictor("ancestral", stride=2), "stride must be None without window_length"),
        (lambda: predictor("ancestral", window_length=2), "stride must be from 1 to window_length=2"),
        (
            lambda: predictor("ancestral", window_length=2, stride=3),
            "stride must be from 1 to window_length=2",
        ),
        (
            lambda: predictor("ancestral", window_length=0, stride=1),
            "window_length must be None or at least 1",
        ),
    ],
)
def test_options_out_of_range_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
