"""The transition probabilities: published results, composition, marginals."""

import math

import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, CosineSquared, Geometric, Linear, LogLinear, NoiseSchedule, Polynomial, Sine
from xlm_mdlm.process_mdlm import (
    RemaskRule,
    noise_of_alpha,
    remask_probability,
    time_grid,
    unmask_probability,
)

MASK = 2
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


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_transition_is_the_published_posterior(reference: dict[str, Tensor]) -> None:
    """q(x_s | x_t) of a masked cell: unmask * p_theta, and the rest at MASK."""
    t = reference["in.t"]
    unmask = unmask_probability(LogLinear(), t, t - reference["in.dt"])[:, None, None]
    prediction = reference["official.p_x0.f64"]
    distribution = unmask * prediction
    distribution[..., MASK] = 1 - unmask[..., 0]
    masked = reference["in.xt"] == MASK
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


@EACH_SCHEDULE
@pytest.mark.parametrize("rule", ["cap", "rescale"])
@pytest.mark.parametrize("eta", [0.0, 0.02, 0.5, 1.0])
def test_remasking_keeps_the_marginals(schedule: NoiseSchedule, rule: RemaskRule, eta: float) -> None:
    """A cell clean with probability alpha_t becomes one that is clean with probability alpha_s."""
    times = time_grid(16)
    t, s = times[:-1], times[1:]
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    sigma = remask_probability(schedule, t, s, rule=rule, eta=eta)
    unmask = unmask_probability(schedule, t, s, remask=sigma)
    torch.testing.assert_close(
        alpha_t * (1 - sigma) + (1 - alpha_t) * unmask, alpha_s, rtol=1e-12, atol=1e-13
    )
    for probability in (sigma, unmask):
        assert ((probability >= 0) & (probability <= 1)).all()
    assert eta == 0 or (sigma[1:-1] > 0).all()


def test_remasking_rules() -> None:
    """alpha = 1 - t: from 0.8 to 0.6 at most 1, from 0.4 to 0.2 at most 0.2 / 0.6."""
    schedule, t, s = LogLinear(eps=0.0), float64(0.8, 0.4, 0.1), float64(0.6, 0.2, 0.0)
    largest = [1.0, 1 / 3, 0.0]
    cap = remask_probability(schedule, t, s, rule="cap", eta=0.5)
    rescale = remask_probability(schedule, t, s, rule="rescale", eta=0.5)
    assert cap.tolist() == pytest.approx([min(0.5, value) for value in largest], abs=1e-15)
    assert rescale.tolist() == pytest.approx([0.5 * value for value in largest], abs=1e-15)
    plain = unmask_probability(schedule, t, s)
    assert unmask_probability(schedule, t, s, remask=0 * cap).tolist() == plain.tolist()
    assert plain.tolist() == pytest.approx([0.2 / 0.8, 0.2 / 0.4, 1.0], abs=1e-15)


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


def test_time_grid_ends_at_both_ends() -> None:
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(1).tolist() == [1.0, 0.0]
