"""Noise schedules against the authors' values, textbook formulas in extended precision and differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm.modules import Cosine, LogLinear

Schedule = LogLinear | Cosine
Extended = NDArray[np.longdouble]

SCHEDULES: list[Schedule] = [
    LogLinear(),
    Cosine(),
    LogLinear(eps=0.1),
    Cosine(eps=0.1),
    LogLinear(0.0),
    Cosine(0.0),
]
PI = np.longdouble("3.14159265358979323846264338327950288")


def textbook_alpha(schedule: Schedule, t: Extended) -> Extended:
    eps = np.longdouble(schedule.eps)
    return 1 - (1 - eps) * t if isinstance(schedule, LogLinear) else eps + (1 - eps) * np.cos(PI * t / 2)


def textbook_d_alpha(schedule: Schedule, t: Extended) -> Extended:
    eps = np.longdouble(schedule.eps)
    if isinstance(schedule, LogLinear):
        return np.full_like(t, -(1 - eps))
    return -(1 - eps) * PI / 2 * np.sin(PI * t / 2)


def textbook_inverse(schedule: Schedule, alpha: Extended) -> Extended:
    eps = np.longdouble(schedule.eps)
    clean = (alpha - eps) / (1 - eps)
    return 1 - clean if isinstance(schedule, LogLinear) else 2 / PI * np.arccos(clean)


def extended(values: Tensor) -> Extended:
    return values.double().numpy().astype(np.longdouble)


def times(dtype: torch.dtype) -> Tensor:
    """Times in [1e-4, 1], dense towards both ends."""
    ramp = torch.logspace(-4, 0, 500, dtype=torch.float64)
    return torch.cat((ramp, 1 - ramp[ramp <= 0.9999], torch.ones(1, dtype=torch.float64))).to(dtype)


@pytest.mark.parametrize(
    ("key", "schedule"),
    [("loglinear", LogLinear(eps=1e-3)), ("cosine", Cosine(eps=1e-3))],
)
def test_schedule_equals_the_authors_values(
    load_vectors: Callable[[str], dict[str, Tensor]], key: str, schedule: Schedule
):
    vectors = load_vectors("schedules")
    t = vectors["in.t"].double()
    authors = {
        quantity: vectors[f"mdlm_official.{key}_eps1e-3.{quantity}.f64"]
        for quantity in ("total_noise", "rate_noise", "move_chance", "loss_weight")
    }
    alpha, d_alpha = schedule.alpha(t), schedule.d_alpha(t)
    torch.testing.assert_close(-alpha.log(), authors["total_noise"], rtol=1e-6, atol=0)
    torch.testing.assert_close(1 - alpha, authors["move_chance"], rtol=1e-6, atol=0)
    torch.testing.assert_close(-d_alpha / alpha, authors["rate_noise"], rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.loss_weight(t), authors["loss_weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.inverse((-authors["total_noise"]).exp()), t, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_relative_precision_is_kept_at_both_ends(schedule: Schedule, dtype: torch.dtype, tolerance: float):
    t = times(dtype)
    exact_t = extended(t)
    exact_alpha, exact_d_alpha = textbook_alpha(schedule, exact_t), textbook_d_alpha(schedule, exact_t)
    # In extended precision 1 - cos keeps 10 digits at t = 1e-4, its half-angle form all of them.
    clean_loss = (exact_t if isinstance(schedule, LogLinear) else 2 * np.sin(PI * exact_t / 4) ** 2) * (
        1 - np.longdouble(schedule.eps)
    )
    computed = {
        "alpha": (schedule.alpha(t), exact_alpha),
        "d_alpha": (schedule.d_alpha(t), exact_d_alpha),
        "loss_weight": (schedule.loss_weight(t), -exact_d_alpha / clean_loss),
    }
    for name, (values, exact) in computed.items():
        assert values.dtype == dtype
        # alpha(1) of eps = 0 is 0: there the absolute error counts.
        error = np.abs(extended(values) - exact) / np.maximum(np.abs(exact), 1e-6)
        assert float(error.max()) < tolerance, name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_is_precise_in_float32(schedule: Schedule):
    alpha = schedule.alpha(times(torch.float32)).clamp(min=schedule.eps)
    inverse = extended(schedule.inverse(alpha))
    np.testing.assert_allclose(inverse, textbook_inverse(schedule, extended(alpha)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_returns_the_time(schedule: Schedule):
    t = times(torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=1e-11)
    alpha = torch.linspace(schedule.eps, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_derivative_equals_finite_differences(schedule: Schedule):
    t, h = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), 1e-5
    differences = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.d_alpha(t), differences, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_weight_is_its_definition(schedule: Schedule):
    t = torch.linspace(0.05, 1, 500, dtype=torch.float64)
    definition = -schedule.d_alpha(t) / (1 - schedule.alpha(t))
    torch.testing.assert_close(schedule.loss_weight(t), definition, rtol=1e-11, atol=0)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_of_log_linear_is_one_over_t_for_any_eps(eps: float, dtype: torch.dtype):
    t = times(dtype)
    assert torch.equal(LogLinear(eps).loss_weight(t), t.reciprocal())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_alpha_falls_from_one_to_eps(schedule: Schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == 1
    assert float(alpha[-1]) == pytest.approx(schedule.eps, abs=1e-15)
    assert bool((alpha.diff() < 0).all())
    assert bool((schedule.d_alpha(t) <= 0).all())


def test_alphas_below_eps_give_times_just_above_one():
    alpha = torch.linspace(0, 1e-3, 11, dtype=torch.float64)[:-1]
    for schedule in (LogLinear(), Cosine()):
        t = schedule.inverse(alpha)
        assert bool(((t > 1) & (t < 1.002)).all())


@pytest.mark.parametrize("eps", [-0.1, 1.0, float("nan")])
def test_eps_outside_its_range_is_refused(eps: float):
    for schedule in (LogLinear, Cosine):
        with pytest.raises(ValueError, match="eps must be in"):
            schedule(eps)


def test_schedules_are_values():
    assert LogLinear() == LogLinear(eps=1e-3)
    assert Cosine(0.1) != Cosine(0.2)
