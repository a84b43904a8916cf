"""Samplers against the exact distribution of their chain, and that against the data."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from xlm.modules import CosineSquared, Linear, LogLinear, NoiseSchedule, Polynomial, TokenSampling
from xlm_udlm import UDLMPredictor, UDLMSampler
from xlm_udlm.canvas_udlm import Canvas
from xlm_udlm.samplers_udlm import Rule, Step
from xlm_udlm.types_udlm import Output
from xlm_udlm.vocabulary_udlm import CellVocabulary

from .exact_udlm import (
    Array,
    Prediction,
    State,
    as_array,
    assert_drawn_from,
    denoiser,
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
    LENGTH,
    LINE,
    PAD,
    TOKENS,
    AsNetwork,
    K,
    as_distribution,
    chain,
    drawn_texts,
    gibbs,
    predictor,
    prompt_batch,
    table_prediction,
)

ROWS = 6000


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


@pytest.mark.parametrize(
    "sampler",
    [
        UDLMSampler("psi_constant", num_steps=2, eta=0.4),
        UDLMSampler(num_steps=2, final="greedy", gibbs_moves=1),
    ],
    ids=("drawn", "greedy"),
)
def test_full_traces_have_the_probabilities_of_all_trajectories(sampler: UDLMSampler) -> None:
    """Of one cell: from each start, those of all trajectories add up to 1, as do those of a step."""
    rows, network = 1500, AsNetwork(table_prediction(1, K, seed=2), K)
    trace = predictor(sampler)(network, prompt_batch(rows, 1), torch.arange(rows), trace="full").trace
    start, total = [0] * rows, trace.place_log_prob.tolist()
    edits: list[tuple[tuple[int, int], ...]] = [()] * rows
    first: dict[tuple[int, int], tuple[float, float]] = {}
    columns = (trace.step, trace.row, trace.token, trace.log_prob, trace.entropy)
    for step, row, token, log_prob, entropy in zip(*(c.tolist() for c in columns), strict=True):
        if step == 0:
            start[row] = token
            continue
        if step == 1:
            first[start[row], token] = log_prob, entropy
        edits[row] += ((step, token),)
        total[row] += log_prob
    mass = {(start[row], edits[row]): math.exp(total[row]) for row in range(rows)}
    for token in range(FIRST, FIRST + K):
        # Trajectories of small probability may not be among the rows.
        assert 0.99 < sum(p for (found, _), p in mass.items() if found == token) < 1 + 1e-9
        moves = [values for (found, _), values in first.items() if found == token]
        p = [math.exp(log_prob) for log_prob, _ in moves]
        entropy = -sum(each * math.log(each) for each in (*p, 1 - sum(p)))
        assert [found for _, found in moves] == [pytest.approx(entropy, abs=1e-9)] * (K - 1)


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


def test_a_corrected_step_renoises_the_denoiser_and_not_the_prediction() -> None:
    p, step = np.array([0.6, 0.3, 0.1]), Step(known_alpha=0.4, alpha_t=0.4, alpha_s=0.7, kappa=0.25)
    for z in range(K):
        d = p * noised(z, 0.4, K) / (p * noised(z, 0.4, K)).sum()
        mixture = step.mixture(torch.tensor([p[z]]), torch.tensor([K]))
        found = mixture.predict.item() * p + mixture.noise.item() / K + mixture.keep.item() * np.eye(K)[z]
        np.testing.assert_allclose(
            found, 0.25 * posterior(z, p, 0.4, 0.7) + 0.75 * (0.7 * d + 0.1), atol=1e-15
        )


def test_a_gibbs_move_takes_any_free_cell_of_each_row() -> None:
    batch = prompt_batch(900, 4)
    batch["free"] = batch["free"].clone()
    batch["free"][:, 2], batch["free"][5] = False, False
    canvas = Canvas.of(CellVocabulary(**TOKENS), TokenSampling(), "leave_one_out", batch, torch.arange(900))
    move = Step(known_alpha=0.5, alpha_t=0.5, alpha_s=0.5, gibbs=True)
    chosen = canvas.cells_of(move, 1)
    assert canvas.row[chosen].tolist() == [row for row in range(900) if row != 5]
    counts = torch.bincount(canvas.column[chosen], minlength=5).tolist()
    assert (counts[0], counts[2]) == (0, 0)
    assert [counts[column] for column in (1, 3, 4)] == pytest.approx([300] * 3, abs=60)
    assert not torch.equal(chosen, canvas.cells_of(move, 2))


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
