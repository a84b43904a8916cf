"""The reverse process of a cell against the papers' posteriors, and leave-one-out against denoiser."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm_udlm.posterior_udlm import (
    Mixture,
    own_token_bonus,
    plug_in,
    renoised_denoiser,
    renoised_prediction,
)

from .exact_udlm import Array, denoiser, leave_one_out, noised, posterior, random_data, texts

K = 4
TIMES = [(0.0, 0.0001), (0.0, 1.0), (0.2, 0.3), (0.7, 0.7), (0.4, 1.0), (0.999999, 1.0)]


def prediction(seed: int = 0) -> Array:
    return np.random.default_rng(seed).dirichlet(np.ones(K))


def as_array(mixture: Mixture, z: int, p: Array) -> Array:
    """The distribution (K,) of a mixture of one cell."""
    found = mixture.predict.item() * p + mixture.noise.item() / K
    found[z] += mixture.keep.item()
    return found


def at_own(p: Array, z: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([p[z]]), torch.tensor([K])


@pytest.mark.parametrize(("alpha_t", "alpha_s"), TIMES)
def test_the_step_is_the_posterior_in_four_terms_and_as_a_product(alpha_t: float, alpha_s: float) -> None:
    p, a = prediction(), alpha_t / alpha_s
    for z in range(K):
        found = as_array(plug_in(*at_own(p, z), alpha_t=alpha_t, alpha_s=alpha_s), z, p)
        product = noised(z, a, K) * (alpha_s * p + (1 - alpha_s) / K)
        np.testing.assert_allclose(found, product / product.sum(), rtol=0, atol=1e-15)
        np.testing.assert_allclose(found, posterior(z, p, alpha_t, alpha_s), rtol=0, atol=1e-10)
        assert found.sum() == pytest.approx(1, abs=1e-15)


def test_the_posterior_of_a_clean_token_is_bayes_rule() -> None:
    """q(x_s | x_t, x) q(x_t | x) = q(x_t | x_s) q(x_s | x), and the process composes over time."""
    alpha_t, alpha_s = 0.2, 0.6
    for x, z, v in itertools.product(range(K), repeat=3):
        step = posterior(z, np.eye(K)[x], alpha_t, alpha_s)[v]
        left = step * noised(x, alpha_t, K)[z]
        assert left == pytest.approx(noised(v, alpha_t / alpha_s, K)[z] * noised(x, alpha_s, K)[v], abs=1e-15)
    composed = sum(noised(1, alpha_s, K)[v] * noised(v, alpha_t / alpha_s, K) for v in range(K))
    np.testing.assert_allclose(composed, noised(1, alpha_t, K), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("alpha_t", "alpha_s"), TIMES)
def test_a_corrected_step_draws_from_the_denoiser_and_noises_again(alpha_t: float, alpha_s: float) -> None:
    p = prediction(1)
    for z in range(K):
        d = p * noised(z, alpha_t, K)
        d /= d.sum()
        found = as_array(renoised_denoiser(*at_own(p, z), alpha_t=alpha_t, alpha_s=alpha_s), z, p)
        np.testing.assert_allclose(found, alpha_s * d + (1 - alpha_s) / K, rtol=0, atol=1e-15)
    gibbs = as_array(renoised_prediction(torch.tensor([0.1], dtype=torch.float64), alpha=alpha_s), 0, p)
    np.testing.assert_allclose(gibbs, alpha_s * p + (1 - alpha_s) / K, rtol=0, atol=1e-15)


def test_mixtures_mix_and_give_log_probabilities() -> None:
    p, z = prediction(2), 1
    step = plug_in(*at_own(p, z), alpha_t=0.3, alpha_s=0.5)
    again = renoised_denoiser(*at_own(p, z), alpha_t=0.3, alpha_s=0.5)
    mixed = step.mixed(again, 0.2)
    expected = 0.8 * as_array(step, z, p) + 0.2 * as_array(again, z, p)
    np.testing.assert_allclose(as_array(mixed, z, p), expected, rtol=0, atol=1e-15)
    for v in range(K):
        log_prob = mixed.log_prob(torch.tensor([p[v]]).log(), torch.tensor([v == z]), torch.tensor([K]))
        assert log_prob.exp().item() == pytest.approx(expected[v], abs=1e-15)


@pytest.mark.parametrize("alpha", [1e-6, 0.3, 0.9, 1 - 1e-9])
def test_the_logits_of_the_two_predictions_differ_at_the_own_token(alpha: float) -> None:
    data = random_data(2, 3, seed=5)
    m, d = leave_one_out(data), denoiser(data)
    bonus = own_token_bonus(torch.tensor([1 - alpha], dtype=torch.float64), torch.tensor([3])).item()
    for state in texts(2, 3):
        of_others, of_all = m(state, alpha), d(state, alpha)
        for cell, z in enumerate(state):
            raised = of_others[cell] * np.exp(bonus * np.eye(3)[z])
            np.testing.assert_allclose(raised / raised.sum(), of_all[cell], rtol=0, atol=1e-12)
            lowered = of_all[cell] * np.exp(-bonus * np.eye(3)[z])
            np.testing.assert_allclose(lowered / lowered.sum(), of_others[cell], rtol=0, atol=1e-7)


def test_the_leave_one_out_prediction_gives_the_reverse_process_and_the_denoiser_does_not() -> None:
    data, alpha_t, alpha_s = random_data(2, 3, seed=5), 0.4, 0.6
    m, d = leave_one_out(data), denoiser(data)
    worst = 0.0
    for state in texts(2, 3):
        for cell, z in enumerate(state):
            clean = d(state, alpha_t)[cell]
            right = sum(clean[x] * posterior(z, np.eye(3)[x], alpha_t, alpha_s) for x in range(3))
            found = posterior(z, m(state, alpha_t)[cell], alpha_t, alpha_s)
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-15)
            worst = max(worst, np.abs(posterior(z, clean, alpha_t, alpha_s) - right).max())
    assert worst > 0.05


def test_vectors_of_the_authors(reference: dict[str, Tensor]) -> None:
    """Posteriors and psi step over the possible tokens; the posterior of the authors' code over all."""
    allowed = reference["derived.allowed_ids"]
    alpha_t, alpha_s = 1 - reference["in.t"], 1 - reference["in.s"]
    cases = [
        (
            reference["in.logits"][..., allowed].double(),
            reference["derived.x_t"],
            6,
            "derived.posterior_model",
        ),
        (
            reference["in.logits"].double(),
            reference["official.udlm.x_t.f64"],
            11,
            "official.udlm.posterior_model.f64",
        ),
    ]
    for logits, state, k, name in cases:
        p = logits.softmax(-1)
        own = state if k == 11 else torch.searchsorted(allowed, state)
        for row, cell in itertools.product(range(3), range(6)):
            z, q = int(own[row, cell]), p[row, cell]
            times = {"alpha_t": alpha_t[row].item(), "alpha_s": alpha_s[row].item()}
            given = q[z : z + 1], torch.tensor([k])
            step = plug_in(*given, **times)
            found = step.predict * q + step.noise / k
            found[z] += step.keep.item()
            torch.testing.assert_close(found, reference[name][row, cell], rtol=0, atol=1e-12)
            if k == 6:
                again = renoised_denoiser(*given, **times)
                psi = step.mixed(again, 0.1)
                found = psi.predict * q + psi.noise / k
                found[z] += psi.keep.item()
                torch.testing.assert_close(
                    found, reference["derived.psi_q_kappa0.9"][row, cell], rtol=0, atol=1e-12
                )
                clean = renoised_denoiser(*given, alpha_t=times["alpha_t"], alpha_s=1.0)
                d = clean.predict * q
                d[z] += clean.keep.item()
                torch.testing.assert_close(
                    d, reference["derived.denoising_posterior"][row, cell], rtol=0, atol=1e-12
                )


def test_vectors_of_the_authors_over_all_tokens(reference: dict[str, Tensor]) -> None:
    """The true posterior, duo's corrected step and its last one (alpha has an eps there), and -log d."""
    p, number = reference["in.logits"].double().softmax(-1), torch.tensor([11])
    state, clean = reference["official.udlm.x_t.f64"], reference["in.x0"]
    for row, cell in itertools.product(range(3), range(6)):
        z, q = int(state[row, cell]), p[row, cell]
        one_hot = torch.eye(11, dtype=torch.float64)[clean[row, cell]]
        t, s = reference["in.t"][row].item(), reference["in.s"][row].item()

        def table(mixture: Mixture, prediction: Tensor, z: int = z) -> Tensor:
            found = mixture.predict * prediction + mixture.noise / 11
            found[z] += mixture.keep.item()
            return found

        right = plug_in(one_hot[z : z + 1], number, alpha_t=1 - t, alpha_s=1 - s)
        eps = {"alpha_t": 1 - 0.999 * t, "alpha_s": 1 - 0.999 * s}
        own = q[z : z + 1]
        corrected = plug_in(own, number, **eps).mixed(renoised_denoiser(own, number, **eps), 0.1)
        last = renoised_denoiser(own, number, alpha_t=eps["alpha_t"], alpha_s=1.0)
        for found, name in (
            (table(right, one_hot), "official.udlm.posterior_true.f64"),
            (table(corrected, q), "official.duo.psi_q_kappa0.9.f64"),
            (table(last, q), "official.duo.noise_removal_q.f64"),
        ):
            torch.testing.assert_close(found, reference[name][row, cell], rtol=0, atol=1e-9, msg=name)
