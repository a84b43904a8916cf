"""Samplers against the exact distribution of their chain, and that against the data."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from xlm.modules import CosineSquared, Linear, LogLinear, NoiseSchedule, Polynomial
from xlm.modules.records import Event, Targets
from xlm_udlm import UDLMPredictor, UDLMSampler
from xlm_udlm.samplers_udlm import Rule, Step
from xlm_udlm.types_udlm import Output

from .exact_udlm import (
    Array,
    Prediction,
    State,
    as_array,
    assert_drawn_from,
    denoiser,
    entropy,
    grid,
    leave_one_out,
    noised,
    path_mass,
    posterior,
    random_data,
    sampled,
    texts,
    total_variation,
)
from .networks_udlm import (
    BOS,
    FIRST,
    PAD,
    AsNetwork,
    as_distribution,
    drawn_texts,
    prompt_batch,
    standard_error,
    table_prediction,
)

K, LENGTH, ROWS = 3, 2, 6000
LINE = LogLinear(eps=0.0)
TOKENS: dict[str, Any] = {"vocab_size": FIRST + K, "pad_id": PAD, "eos_id": None, "suppressed_ids": [BOS]}


def predictor(sampler: UDLMSampler, **changes: Any) -> UDLMPredictor:
    options: dict[str, Any] = {"schedule": LINE, **TOKENS, **changes}
    return UDLMPredictor(sampler=sampler, **options)


def chain(predict: Prediction, steps: list[Step], length: int = LENGTH, k: int = K) -> Array:
    """Distribution of the states after the steps, with kernels written out."""
    mass = np.full(k**length, 1 / k**length)
    for step in steps:
        alpha_t, alpha_s = step.alpha_t, step.alpha_s

        def kernel(z: int, p: Array, _: float, __: float, step: Step = step) -> Array:
            d = p * noised(z, step.alpha_t, k)
            d /= d.sum()
            if step.greedy:
                return np.eye(k)[d.argmax()]
            again = step.alpha_s * d + (1 - step.alpha_s) / k
            return step.kappa * posterior(z, p, step.alpha_t, step.alpha_s) + (1 - step.kappa) * again

        if step.gibbs:
            mass = gibbs(predict, mass, alpha_s, length, k)
        else:
            mass = sampled(predict, length, k, [alpha_t, alpha_s], kernel, start=mass)
    return mass


def gibbs(predict: Prediction, mass: Array, alpha: float, length: int, k: int) -> Array:
    """One cell, chosen uniformly, given the others."""
    states = texts(length, k)
    after = dict.fromkeys(states, 0.0)
    for state, part in zip(states, mass, strict=True):
        p = predict(state, alpha)
        for cell, token in itertools.product(range(length), range(k)):
            moved = (*state[:cell], token, *state[cell + 1 :])
            after[moved] += part / length * (alpha * p[cell, token] + (1 - alpha) / k)
    return as_array(after)


SAMPLERS = [
    UDLMSampler(num_steps=1),
    UDLMSampler(num_steps=3),
    UDLMSampler(num_steps=3, final="greedy"),
    UDLMSampler(num_steps=2, gibbs_moves=2),
    UDLMSampler("psi_constant", num_steps=3, eta=0.4),
    UDLMSampler("psi_remdm", num_steps=3, eta=0.2),
    UDLMSampler("psi_cap", num_steps=3, eta=0.3),
    UDLMSampler("psi_rescale", num_steps=4, eta=0.9, hold_alpha=0.6),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: f"{sampler.rule}-{sampler.num_steps}")
def test_texts_follow_the_enumerated_chain(sampler: UDLMSampler) -> None:
    predict = table_prediction(LENGTH, K, seed=2)
    network, batch = AsNetwork(predict, K), prompt_batch(ROWS, LENGTH)
    found = predictor(sampler)(network, batch, 10**6 + torch.arange(ROWS))
    steps = sampler.steps(LINE)
    assert_drawn_from(drawn_texts(found), as_distribution(chain(predict, steps), LENGTH, K))
    assert found.nfe.tolist() == [len(steps)] * ROWS
    assert network.alphas == pytest.approx([max(step.known_alpha, 1e-4) for step in steps], abs=1e-12)
    assert len(steps) == sampler.num_steps + (sampler.num_steps - 1) * sampler.gibbs_moves


def test_filters_act_on_the_prediction_before_the_posterior() -> None:
    table, sampler = table_prediction(LENGTH, K, seed=2), UDLMSampler(num_steps=3)

    def filtered(state: State, alpha: float) -> Array:
        p = table(state, alpha) ** (1 / 0.5)
        p = np.where(p >= np.sort(p, axis=1)[:, -2:-1], p, 0.0)
        return p / p.sum(1, keepdims=True)

    found = predictor(sampler, temperature=0.5, top_k=2)(
        AsNetwork(table, K), prompt_batch(ROWS, LENGTH), torch.arange(ROWS)
    )
    exact = chain(filtered, sampler.steps(LINE))
    assert_drawn_from(drawn_texts(found), as_distribution(exact, LENGTH, K))


def test_a_denoisers_output_gives_the_samples_of_the_leave_one_out_prediction() -> None:
    """Draw by draw the same texts, since the converted logits are the same."""
    data = random_data(LENGTH, K, seed=3)
    found: dict[Output, list[State]] = {}
    networks: dict[Output, Prediction] = {"leave_one_out": leave_one_out(data), "denoiser": denoiser(data)}
    for output, predict in networks.items():
        sample = predictor(UDLMSampler(num_steps=4, final="greedy"), output=output)
        found[output] = drawn_texts(
            sample(AsNetwork(predict, K), prompt_batch(500, LENGTH), torch.arange(500))
        )
    assert found["leave_one_out"] == found["denoiser"]


# The exact prediction: what is left is the sampler's own error


DATA3 = random_data(3, K, seed=0)
ORACLE = leave_one_out(DATA3)


def error(sampler: UDLMSampler) -> float:
    return total_variation(chain(ORACLE, sampler.steps(LINE), 3), as_array(DATA3))


def test_the_ancestral_error_halves_as_the_steps_double() -> None:
    errors = [error(UDLMSampler(num_steps=number)) for number in (4, 8, 16, 32)]
    ratios = [after / before for before, after in itertools.pairwise(errors)]
    assert errors[-1] < 0.03
    assert ratios[-1] == pytest.approx(0.5, abs=0.05)
    assert ratios == sorted(ratios, reverse=True) or max(ratios) < 0.7


def test_a_corrector_of_fixed_strength_does_not_converge() -> None:
    exact, constant, weak = (
        error(UDLMSampler(num_steps=32)),
        error(UDLMSampler("psi_constant", num_steps=32, eta=1.0)),
        error(UDLMSampler("psi_constant", num_steps=32, eta=1 / 32)),
    )
    assert constant > 2 * exact
    assert weak < 1.3 * exact


def test_the_greedy_end_keeps_the_cells_own_token() -> None:
    """The published one takes the most probable token given the others: an error at any number of steps."""
    ours = [error(UDLMSampler(num_steps=number, final="greedy")) for number in (16, 32)]
    assert ours[0] < 0.1
    assert ours[1] < 0.6 * ours[0]
    before_end = sampled(ORACLE, 3, K, grid(16)[:-1])

    def published(z: int, p: Array, _: float, __: float) -> Array:
        return np.eye(K)[p.argmax()]

    ended = sampled(ORACLE, 3, K, grid(16)[-2:], published, start=before_end)
    assert total_variation(ended, as_array(DATA3)) > 0.2


def test_gibbs_moves_leave_the_exact_distribution_as_it_is() -> None:
    for alpha in (0.0, 0.3, 0.9):
        at_level = as_array(
            {
                state: sum(mass * path_mass(state, text, alpha, K) for text, mass in DATA3.items())
                for state in texts(3, K)
            }
        )
        assert total_variation(gibbs(ORACLE, at_level, alpha, 3, K), at_level) < 1e-14


def test_one_cell_is_exact_in_any_number_of_steps() -> None:
    data = random_data(1, K, seed=4)
    for sampler in (UDLMSampler(num_steps=1), UDLMSampler("psi_cap", num_steps=5, eta=0.5, hold_alpha=0.7)):
        found = chain(leave_one_out(data), sampler.steps(LINE), 1)
        assert total_variation(found, as_array(data)) < 1e-14


# Steps


@pytest.mark.parametrize(
    "schedule", [LINE, LogLinear(), CosineSquared(), Polynomial(2.0), Linear(0.1, 1.0)], ids=repr
)
def test_rows_start_as_noise_and_end_without(schedule: NoiseSchedule) -> None:
    """Whatever the ends of the schedule; the network is told no alpha beyond them."""
    for sampler in SAMPLERS:
        steps = [step for step in sampler.steps(schedule) if not step.gibbs]
        assert (steps[0].alpha_t, steps[-1].alpha_s) == (0.0, 1.0)
        assert all(before.alpha_s == after.alpha_t for before, after in itertools.pairwise(steps))
        assert all(step.alpha_t <= step.alpha_s for step in steps)
        assert steps[0].known_alpha == float(schedule.alpha(torch.ones((), dtype=torch.float64)))
        assert [step.known_alpha for step in steps[1:]] == [step.alpha_t for step in steps[1:]]


def test_time_stands_still_at_the_given_noise() -> None:
    """The published profile: 0.45 of the steps before alpha = 0.9, half of them there, alone corrected."""
    steps = UDLMSampler("psi_remdm", num_steps=20, eta=0.01, hold_alpha=0.9).steps(LINE)
    held = [step for step in steps if step.alpha_t == step.alpha_s]
    assert (len(held), steps.index(held[0])) == (10, 9)
    assert [step.kappa for step in held] == pytest.approx([0.9] * 10)
    assert {step.kappa for step in steps if step not in held} == {1.0}
    assert [step.alpha_t for step in held] == pytest.approx([0.9] * 10)
    few = UDLMSampler("psi_remdm", num_steps=3, eta=0.01, hold_alpha=0.9, approach_share=0.9, hold_share=0.09)
    assert [step.alpha_s for step in few.steps(LINE)] == pytest.approx([0.9, 0.9, 1.0])


def test_strengths_of_the_corrector_are_those_of_the_authors(reference: dict[str, Tensor]) -> None:
    """alpha = 1 - (1 - 1e-3) t at their times; the published rescaling applies eta twice."""
    times = reference["in.kappa_times"].double()
    alpha = (1 - 0.999 * times).tolist()
    # The last step ends at t = 1e-5, where the strength is cut.
    rules: dict[Rule, str] = {"psi_remdm": "constant-remdm-0.05", "psi_cap": "max-capped-0.05"}
    for rule, name in rules.items():
        sampler = UDLMSampler(rule, eta=0.05)
        found = [sampler.kappa(*pair) for pair in itertools.pairwise(alpha)]
        expected = reference[f"official.duo.kappa.{name}.f64"].tolist()
        assert found[:7] == pytest.approx(expected[:7], abs=2e-6), rule
    twice = reference["official.duo.kappa.max-rescale-0.05.f64"][:4].tolist()
    sampler = UDLMSampler("psi_rescale", eta=0.05**2)
    found = [sampler.kappa(*pair) for pair in itertools.pairwise(alpha)]
    assert found[:4] == pytest.approx(twice, abs=2e-6)
    assert found[6] == pytest.approx(1 - 0.05**2 / alpha[6], abs=1e-12), "eta * (1 - alpha_s) / alpha_t"
    assert UDLMSampler("psi_constant", eta=0.1).kappa(0.2, 0.3) == pytest.approx(0.9)


def test_given_cells_and_ends_of_texts() -> None:
    """Given tokens stay in every step; a text ends at its first EOS or PAD where it may end."""
    rows, eos = 300, FIRST + K
    batch = prompt_batch(rows, 4)
    batch["input_ids"][:, 2] = FIRST + 1
    batch["free"] = batch["free"].clone()
    batch["free"][:, 2] = False
    batch["may_end"] = torch.arange(5).expand(rows, -1) > 2

    class Unsure(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor | None, noise: Tensor, *, positions: Tensor) -> Tensor:
            return torch.zeros(len(positions), FIRST + K + 1)

    network = Unsure()
    sample = UDLMPredictor(
        schedule=LINE, sampler=UDLMSampler(num_steps=3), vocab_size=FIRST + K + 1, pad_id=PAD, eos_id=eos,
        suppressed_ids=[BOS],
    )  # fmt: skip
    found = sample(network, batch, torch.arange(rows), trace=True)
    assert (found.ids[:, 1] == FIRST + 1).all()
    assert set(found.lengths.tolist()) == {2, 3, 4}
    ordinary = set(range(FIRST, FIRST + K)) | {PAD}
    assert set(found.ids.flatten().tolist()) <= ordinary
    assert (found.trace.position[found.trace.step > 0] != 1).all()


# Likelihood of the sampler


LIKELIHOODS = [
    UDLMSampler(num_steps=3),
    UDLMSampler("psi_constant", num_steps=3, eta=0.4),
    UDLMSampler("psi_rescale", num_steps=4, eta=0.9, hold_alpha=0.6, final="greedy"),
]


@pytest.mark.parametrize("sampler", LIKELIHOODS, ids=lambda sampler: sampler.rule)
def test_mean_weights_of_replays_are_the_probabilities_of_texts(sampler: UDLMSampler) -> None:
    predict, rows = table_prediction(LENGTH, K, seed=2), 2500
    exact = as_distribution(chain(predict, sampler.steps(LINE)), LENGTH, K)
    for text in ((0, 1), (2, 2)):
        targets = Targets(ids=FIRST + torch.tensor([text] * rows), lengths=torch.full((rows,), LENGTH))
        found = predictor(sampler).likelihood(
            AsNetwork(predict, K), prompt_batch(rows, LENGTH), targets, torch.arange(rows), num_draws=2
        )
        weights = found.log_weights.exp().flatten()
        assert float(weights.mean()) == pytest.approx(exact[text], abs=4 * standard_error(weights))
        assert standard_error(weights) < 0.05 * exact[text], "too few draws"
        assert (found.nll_kind, found.num_draws) == ("bound", 2)
        assert found.nfe.tolist() == [2 * sampler.num_steps] * rows
        assert found.num_tokens.tolist() == [LENGTH] * rows


def test_the_bound_of_one_draw_is_that_of_discrete_time() -> None:
    """With the exact prediction its mean exceeds -log p of the sampler, and falls to the entropy."""
    data = random_data(LENGTH, K, seed=3)
    network, masses = AsNetwork(leave_one_out(data), K), as_array(data)
    means: dict[int, float] = {}
    rows = 900
    texts_drawn = [text for text in data for _ in range(rows // len(data))]
    for num_steps in (2, 16):
        targets = Targets(ids=FIRST + torch.tensor(texts_drawn), lengths=torch.full((rows,), LENGTH))
        found = predictor(UDLMSampler(num_steps=num_steps)).likelihood(
            network, prompt_batch(rows, LENGTH), targets, torch.arange(rows)
        )
        by_text = found.nll.view(len(data), -1).mean(1)
        means[num_steps] = float((by_text * torch.tensor(masses)).sum())
    assert means[2] > means[16] + 0.05
    assert means[16] == pytest.approx(entropy(data), abs=0.2)


def test_texts_that_end_are_scored_up_to_their_end() -> None:
    """p(text) sums over the tokens that end it and over all that stands behind; p(cells) does not."""
    k, eos, rows = 2, FIRST + 2, 3000
    predict = table_prediction(LENGTH, k + 2, seed=6)

    class WithEnds(AsNetwork):
        """Tokens in the order FIRST, FIRST + 1, EOS, PAD of the enumeration."""

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None, noise: Tensor, *, positions: Tensor
        ) -> Tensor:
            moved = input_ids.where(input_ids != PAD, FIRST + 3)
            logits = super().forward(moved, attention_mask, noise, positions=positions)
            return torch.cat([logits[:, FIRST + 3 :], logits[:, 1 : FIRST + 3]], dim=1)

    network, sampler = WithEnds(predict, k + 2), UDLMSampler(num_steps=3)
    batch = prompt_batch(rows, LENGTH)
    batch["may_end"] = batch["free"]
    sample = UDLMPredictor(
        schedule=LINE, sampler=sampler, vocab_size=FIRST + 3, pad_id=PAD, eos_id=eos, suppressed_ids=[BOS]
    )
    exact = as_distribution(chain(predict, sampler.steps(LINE), LENGTH, k + 2), LENGTH, k + 2)
    of_text = sum(mass for cells, mass in exact.items() if cells[0] == 1 and cells[1] in (2, 3))
    cases: list[tuple[Event, float]] = [("text", of_text), ("cells", exact[1, 2])]
    for event, expected in cases:
        targets = Targets(ids=torch.full((rows, 1), FIRST + 1), lengths=torch.ones(rows, dtype=torch.int64))
        likelihood = sample.likelihood(network, batch, targets, torch.arange(rows), event=event)
        weights = likelihood.log_weights.exp()[0]
        assert float(weights.mean()) == pytest.approx(expected, abs=4 * standard_error(weights)), event
        assert standard_error(weights) < 0.05 * expected
    empty = Targets(ids=torch.zeros(rows, 0, dtype=torch.int64), lengths=torch.zeros(rows, dtype=torch.int64))
    weights = sample.likelihood(network, batch, empty, torch.arange(rows)).log_weights.exp()[0]
    expected = sum(mass for cells, mass in exact.items() if cells[0] in (2, 3))
    assert float(weights.mean()) == pytest.approx(expected, abs=4 * standard_error(weights))


def test_texts_that_cannot_be_written_have_no_probability() -> None:
    network, sample = AsNetwork(table_prediction(LENGTH, K, seed=2), K), predictor(UDLMSampler(num_steps=2))
    ids = torch.tensor([[FIRST, FIRST, FIRST], [FIRST, PAD, 0], [FIRST, FIRST + 1, 0]])
    targets = Targets(ids=ids, lengths=torch.tensor([3, 2, 2]))
    found = sample.likelihood(network, prompt_batch(3, LENGTH), targets, torch.arange(3))
    assert found.nll.isfinite().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="gibbs_moves has no likelihood: set gibbs_moves=0"):
        predictor(UDLMSampler(num_steps=2, gibbs_moves=1)).likelihood(
            network, prompt_batch(3, LENGTH), targets, torch.arange(3)
        )
    batch = prompt_batch(3, LENGTH)
    batch["free"] = batch["free"].clone()
    batch["free"][:, 1] = False
    batch["input_ids"][:, 1] = FIRST + 2
    with pytest.raises(ValueError, match="target 0 differs from the given token at position 0"):
        sample.likelihood(network, batch, targets, torch.arange(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "rule"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"eta": 0.1}, "eta must be None with rule='ancestral'"),
        ({"hold_alpha": 0.9}, "hold_alpha must be None with rule='ancestral'"),
        ({"rule": "psi_cap"}, r"eta must be in \(0, 1\] with rule='psi_cap'"),
        ({"rule": "psi_cap", "eta": 0.1, "hold_alpha": 1.0}, r"hold_alpha must be None or in \(0, 1\)"),
        ({"rule": "psi_cap", "eta": 0.1, "hold_alpha": 0.9, "num_steps": 2}, "at least 3 with hold_alpha"),
        ({"rule": "psi_cap", "eta": 0.1, "hold_share": 0.6}, "above 0 and together below 1"),
        ({"final": "argmax"}, "final"),
        ({"gibbs_moves": -1}, "gibbs_moves must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeCheckError), match=message):
        UDLMSampler(**options)
