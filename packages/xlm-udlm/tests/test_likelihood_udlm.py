"""Proves, with the exact leave-one-out prediction m, by enumeration of all states and quadrature over time,

    NELBO(x) = -log p(x) for every text x,

so that the minimum of the loss is the entropy, which any other prediction exceeds (arXiv:2605.22765).
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from xlm.modules import (
    Cosine,
    CosineSquared,
    Geometric,
    Linear,
    LogLinear,
    NoiseSchedule,
    Polynomial,
    Sine,
    linear_cell_loss,
)
from xlm_udlm import UDLMCollator, UDLMExample, UDLMLikelihoodCollator, UDLMLoss, UDLMSampler
from xlm_udlm.nelbo_udlm import UniformNELBO
from xlm_udlm.posterior_udlm import own_token_bonus
from xlm_udlm.types_udlm import Output, one_minus_alpha
from xlm_udlm.vocabulary_udlm import CellVocabulary

from .exact_udlm import (
    Prediction,
    State,
    denoiser,
    discrete_bound,
    entropy,
    leave_one_out,
    nelbo,
    path_mass,
    quadrature,
    random_data,
    random_prediction,
    texts,
)
from .networks_udlm import (
    BOS,
    FIRST,
    LINE,
    PAD,
    AsNetwork,
    as_distribution,
    chain,
    standard_error,
    table_prediction,
)

K, LENGTH = 3, 2
DATA = random_data(LENGTH, K, seed=3)
TOKENS: dict[str, Any] = {"vocab_size": FIRST + K, "pad_id": PAD, "eos_id": None, "suppressed_ids": [BOS]}
LOSS = UDLMLoss(**TOKENS)
COMPLETE: list[NoiseSchedule] = [
    LogLinear(eps=0.0),
    Cosine(eps=0.0),
    CosineSquared(eps=0.0),
    Sine(),
    Polynomial(2.0),
    Polynomial(0.5),
]


def bounds(predict: Prediction, *, is_denoiser: bool = False) -> dict[State, float]:
    """NELBO of each text by the package's F, at 120 times and all states at once."""
    states, clean = texts(LENGTH, K), list(DATA)
    rows = [
        (number, state, text, 1 - u, weight * path_mass(state, text, 1 - u, K))
        for u, weight in zip(*quadrature(120), strict=True)
        for state in states
        for number, text in enumerate(clean)
    ]
    predicted = {(state, alpha): predict(state, alpha) for _, state, _, alpha, _ in rows}
    logits = torch.full((len(rows), LENGTH, FIRST + K), -math.inf, dtype=torch.float64)
    logits[:, :, FIRST:] = torch.tensor(np.array([predicted[row[1], row[3]] for row in rows])).log()
    alpha, mass = torch.tensor([row[3:] for row in rows], dtype=torch.float64).unbind(1)

    def tokens(column: int) -> Tensor:
        return FIRST + torch.tensor([row[column] for row in rows]).flatten()

    noise = (1 - alpha).repeat_interleave(LENGTH)
    bound = UniformNELBO(
        CellVocabulary(**TOKENS),
        own=tokens(1),
        target=tokens(2),
        one_minus_alpha=noise,
        weight=(mass / alpha).repeat_interleave(LENGTH),
        may_end=torch.zeros(len(rows) * LENGTH, dtype=torch.bool),
        own_bonus=own_token_bonus(noise, torch.full(noise.shape, K)) if is_denoiser else None,
    )
    found = linear_cell_loss(logits.flatten(0, 1), nn.Identity(), bound).of_cells
    text = torch.tensor([row[0] for row in rows]).repeat_interleave(LENGTH)
    sums = torch.zeros(len(clean), dtype=torch.float64).index_add(0, text, found)
    return dict(zip(clean, sums.tolist(), strict=True))


def mean(found: dict[State, float]) -> float:
    return sum(DATA[text] * value for text, value in found.items())


def test_the_bound_is_tight_at_the_leave_one_out_prediction_and_nowhere_else() -> None:
    m = leave_one_out(DATA)
    found = bounds(m)
    for text, mass in DATA.items():
        assert found[text] == pytest.approx(-math.log(mass), abs=1e-9)
    assert mean(found) == pytest.approx(entropy(DATA), abs=1e-10)
    other = table_prediction(LENGTH, K, seed=1)
    for share in (0.02, 0.3):

        def mixed(state: State, alpha: float, share: float = share) -> Any:
            return (1 - share) * m(state, alpha) + share * other(state, alpha)

        assert mean(bounds(mixed)) > entropy(DATA) + 0.01 * share**2


def test_a_denoiser_is_no_such_prediction_unless_it_is_converted() -> None:
    d = denoiser(DATA)
    assert mean(bounds(d)) > entropy(DATA) + 0.3
    found = bounds(d, is_denoiser=True)
    for text, mass in DATA.items():
        assert found[text] == pytest.approx(-math.log(mass), abs=1e-8)


def test_bounds_of_a_wrong_network_are_those_by_definition() -> None:
    predict = table_prediction(LENGTH, K, seed=1)
    found = bounds(predict)
    for text in list(DATA)[:3]:
        assert found[text] == pytest.approx(nelbo(predict, text, K, nodes=120), rel=1e-9)


def test_the_bound_of_the_sampler_with_n_steps_tends_to_that_of_continuous_time() -> None:
    """For every text of any network: it bounds -log p of N steps, and is O(1/N) from the other."""
    predict = random_prediction(LENGTH, K, seed=1)
    continuous, differences = bounds(predict), list[float]()
    for num_steps in (8, 16, 32):
        masses = chain(predict, UDLMSampler(num_steps=num_steps).steps(LINE))
        assert masses.sum() == pytest.approx(1.0, abs=1e-12)
        found = {text: discrete_bound(predict, text, K, num_steps) for text in DATA}
        for text, mass in as_distribution(masses, LENGTH, K).items():
            assert found[text] > -math.log(mass) + 1e-3
        differences.append(max(abs(found[text] - continuous[text]) for text in DATA))
    ratios = [after / before for before, after in itertools.pairwise(differences)]
    assert ratios == pytest.approx([0.5, 0.5], abs=0.06), differences


def test_a_cut_at_small_times_gives_less_than_the_entropy() -> None:
    """What the published code evaluates; the part that is left out is the network's reconstruction."""
    m, d, cut = leave_one_out(DATA), denoiser(DATA), 1e-2
    kept = sum(mass * nelbo(m, text, K, start=cut, nodes=60) for text, mass in DATA.items())
    assert kept < entropy(DATA) - 0.02
    rest = sum(
        mass * path_mass(state, text, 1 - cut, K) * -math.log(d(state, 1 - cut)[cell, token])
        for text, mass in DATA.items()
        for state in texts(LENGTH, K)
        for cell, token in enumerate(text)
    )
    assert entropy(DATA) <= kept + rest < entropy(DATA) + 0.01


# Collators


def examples(number: int, text: State) -> list[UDLMExample]:
    ids = FIRST + torch.tensor(text)
    return [{"seed": seed, "target_ids": ids} for seed in range(number)]


def likelihood_collator(num_draws: int = 1, **changes: Any) -> UDLMLikelihoodCollator:
    options: dict[str, Any] = {"schedule": LogLinear(), "bos_id": BOS, **TOKENS, **changes}
    return UDLMLikelihoodCollator(**options, num_draws=num_draws)


def test_the_likelihood_is_an_unbiased_estimate_without_a_cut() -> None:
    """Means over many draws lie within 4 standard errors, and stratified draws vary less."""
    predict, text, number = table_prediction(LENGTH, K, seed=1), (0, 2), 4000
    network, expected = AsNetwork(predict, K), nelbo(predict, text, K, nodes=120)
    spread: dict[int, float] = {}
    for num_draws in (1, 4):
        nll = LOSS.likelihood(network, likelihood_collator(num_draws)(examples(number, text))).nll
        assert nll.shape == (number,)
        spread[num_draws] = float(nll.std())
        assert float(nll.mean()) == pytest.approx(expected, abs=4 * standard_error(nll)), num_draws
        assert standard_error(nll) < 0.03 * expected, "too few draws"
    assert spread[4] < 0.95 * spread[1] / 2, "no better than independent draws"


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 4.0])
def test_the_density_of_the_times_does_not_change_the_expected_loss(power: float) -> None:
    predict, text, number = table_prediction(LENGTH, K, seed=1), (0, 2), 6000
    collate = UDLMCollator(schedule=LogLinear(eps=0.0), bos_id=BOS, **TOKENS, min_time=0.05, time_power=power)
    network = AsNetwork(predict, K)
    losses = torch.stack(
        [
            LOSS(network, collate(examples(number, text)[part::10])).loss_sum / (number / 10)
            for part in range(10)
        ]
    )
    expected = nelbo(predict, text, K, start=0.05, nodes=60)
    assert float(losses.mean()) == pytest.approx(expected, abs=5 * standard_error(losses))
    assert standard_error(losses) < 0.05 * expected


def test_the_schedule_cancels_in_the_likelihood() -> None:
    """The same rows, noise levels and weights under every complete schedule."""
    first = likelihood_collator(3, schedule=COMPLETE[0])(examples(200, (0, 1)))
    for schedule in COMPLETE[1:]:
        batch = likelihood_collator(3, schedule=schedule)(examples(200, (0, 1)))
        for name in ("input_ids", "one_minus_alpha", "weight"):
            assert torch.equal(batch[name], first[name]), (schedule, name)
        torch.testing.assert_close(batch["noise"], first["noise"], rtol=1e-6, atol=1e-9)
    capped = likelihood_collator(3, schedule=LogLinear(eps=0.1))(examples(200, (0, 1)))
    assert float(capped["noise"].max()) == pytest.approx(-math.log(0.1)), "no more noise than in training"
    assert torch.equal(capped["one_minus_alpha"], first["one_minus_alpha"])


@pytest.mark.parametrize("schedule", COMPLETE, ids=repr)
def test_noise_levels_keep_their_digits_near_time_zero(schedule: NoiseSchedule) -> None:
    times = torch.tensor([0.0, 1e-9, 1e-6, 0.3, 0.8, 1.0], dtype=torch.float64)
    found = one_minus_alpha(schedule, times)
    torch.testing.assert_close(found[3:], 1 - schedule.alpha(times)[3:], rtol=1e-12, atol=0)
    assert float(found[0]) == 0
    # Near 0 the noise is a power t^p: twice the time has 2^p times the noise.
    for t in (1e-9, 1e-6):
        once, twice = one_minus_alpha(schedule, torch.tensor([t, 2 * t], dtype=torch.float64)).tolist()
        assert twice / once == pytest.approx(2 ** round(math.log2(twice / once)), rel=1e-5)
        assert 0 < once < 10 * t


def test_likelihood_describes_itself() -> None:
    network = AsNetwork(table_prediction(LENGTH, K, seed=1), K)
    known = LOSS.likelihood(network, likelihood_collator(5)(examples(4, (1, 2))))
    assert (known.nll_kind, known.num_draws, known.models_length) == ("bound", 5, False)
    assert known.num_tokens.tolist() == [LENGTH] * 4
    assert known.nll.dtype == torch.float64


def test_training_batches_have_no_likelihood() -> None:
    collate = UDLMCollator(schedule=LogLinear(), bos_id=BOS, **TOKENS)
    with pytest.raises(ValueError, match=r"training batch has no likelihood.*Use UDLMLikelihoodCollator"):
        LOSS.likelihood(AsNetwork(leave_one_out(DATA), K), collate(examples(4, (1, 2))))


@pytest.mark.parametrize("schedule", [Linear(0.0, 1.0), Geometric(1e-3, 1.0)], ids=repr)
def test_incomplete_schedules_have_no_likelihood(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=r"needs a schedule with alpha\(0\) = 1 and alpha\(1\) = 0"):
        likelihood_collator(schedule=schedule)


def test_nothing_to_predict_costs_nothing() -> None:
    given: UDLMExample = {
        "seed": 0,
        "target_ids": torch.full((LENGTH,), FIRST),
        "fixed": torch.ones(LENGTH, dtype=torch.bool),
    }
    network = AsNetwork(table_prediction(LENGTH, K, seed=1), K)
    found = LOSS.likelihood(network, likelihood_collator(2)([given, *examples(1, (0, 1))]))
    assert float(found.nll[0]) == 0.0
    assert float(found.nll[1]) > 0
    assert found.num_tokens.tolist() == [0, LENGTH]


def test_a_denoiser_has_the_bound_of_the_leave_one_out_prediction() -> None:
    """Also where the network is conditioned on more than the true alpha, which it cannot be less than."""
    batch = likelihood_collator(3, schedule=LogLinear(eps=0.2))(examples(60, (0, 1)))
    networks = {"leave_one_out": leave_one_out(DATA), "denoiser": denoiser(DATA)}
    outputs: list[Output] = ["leave_one_out", "denoiser"]
    one, other = (
        UDLMLoss(**TOKENS, output=output).likelihood(AsNetwork(networks[output], K), batch).nll
        for output in outputs
    )
    assert float(batch["one_minus_alpha"].max()) > 0.8
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("output", ["noise", ""])
def test_other_outputs_are_refused(output: Any) -> None:
    with pytest.raises((ValueError, TypeCheckError), match="output"):
        UDLMLoss(**TOKENS, output=output)
