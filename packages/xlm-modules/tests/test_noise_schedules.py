"""Noise schedules against the authors' values, textbook formulas in extended precision and differences."""

from collections.abc import Callable
from typing import assert_never

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm.modules import Cosine, CosineSquared, Geometric, Linear, LogLinear, NoiseSchedule, Polynomial, Sine

Schedule = LogLinear | Cosine | CosineSquared | Sine | Polynomial | Linear | Geometric
Extended = NDArray[np.longdouble]

COMPLETE: list[Schedule] = [
    *(kind(eps) for kind in (LogLinear, Cosine, CosineSquared) for eps in (1e-3, 0.1, 0.0)),
    Sine(),
    *(Polynomial(exponent) for exponent in (0.5, 1.0, 2.0, 3.7)),
]
INCOMPLETE: list[Schedule] = [
    Linear(1e-3, 7.0),
    Linear(0.0, 2.0),
    Geometric(1e-3, 1.0),
    Geometric(0.01, 10.0),
]
SCHEDULES = COMPLETE + INCOMPLETE
AUTHORS: list[tuple[str, Schedule]] = [
    ("mdlm_official.loglinear_eps1e-3", LogLinear(eps=1e-3)),
    ("mdlm_official.cosine_eps1e-3", Cosine(eps=1e-3)),
    ("mdlm_official.cosinesqr_eps1e-3", CosineSquared(eps=1e-3)),
    ("mdlm_official.linear_1e-3_7", Linear(1e-3, 7.0)),
    ("mdlm_official.geometric_1e-3_1", Geometric(1e-3, 1.0)),
    ("mdlm_official.geometric_1e-4_20", Geometric(1e-4, 20.0)),
]
REVERSED: list[tuple[str, Schedule]] = [
    ("flex_official.linear", LogLinear(eps=0.0)),
    ("flex_official.sin", Cosine(eps=0.0)),
    ("flex_official.cosine", Sine()),
    ("flex_official.poly2", Polynomial(2.0)),
    ("flex_official.geometric_10_0.01", Geometric(sigma_min=0.01, sigma_max=10.0)),
]
PI = np.longdouble("3.14159265358979323846264338327950288")


def sigma(schedule: Linear | Geometric, t: Extended) -> tuple[Extended, Extended]:
    """Total noise and its derivative."""
    low, high = np.longdouble(schedule.sigma_min), np.longdouble(schedule.sigma_max)
    if isinstance(schedule, Linear):
        return low + t * (high - low), np.full_like(t, high - low)
    total: Extended = np.exp((1 - t) * np.log(low) + t * np.log(high))
    return total, total * np.log(high / low)


def textbook_alpha(schedule: Schedule, t: Extended) -> Extended:
    match schedule:
        case LogLinear(eps):
            return 1 - (1 - np.longdouble(eps)) * t
        case Cosine(eps):
            return eps + (1 - np.longdouble(eps)) * np.cos(PI * t / 2)
        case CosineSquared(eps):
            return eps + (1 - np.longdouble(eps)) * np.cos(PI * t / 2) ** 2
        case Sine():
            return 1 - np.sin(PI * t / 2)
        case Polynomial(exponent):
            return (1 - t) ** np.longdouble(exponent)
        case Linear() | Geometric():
            return np.exp(-sigma(schedule, t)[0])
    assert_never(schedule)


def textbook_d_alpha(schedule: Schedule, t: Extended) -> Extended:
    match schedule:
        case LogLinear(eps):
            return np.full_like(t, -(1 - np.longdouble(eps)))
        case Cosine(eps):
            return -(1 - np.longdouble(eps)) * PI / 2 * np.sin(PI * t / 2)
        case CosineSquared(eps):
            return -(1 - np.longdouble(eps)) * PI / 2 * np.sin(PI * t)
        case Sine():
            return -PI / 2 * np.cos(PI * t / 2)
        case Polynomial(exponent):
            return -np.longdouble(exponent) * (1 - t) ** (np.longdouble(exponent) - 1)
        case Linear() | Geometric():
            total, rate = sigma(schedule, t)
            return -rate * np.exp(-total)
    assert_never(schedule)


def textbook_masked(schedule: Schedule, t: Extended) -> Extended:
    """1 - alpha without cancellation at t = 1e-4, where 1 - cos keeps 10 digits in extended precision."""
    match schedule:
        case LogLinear(eps):
            return (1 - np.longdouble(eps)) * t
        case Cosine(eps):
            return (1 - np.longdouble(eps)) * 2 * np.sin(PI * t / 4) ** 2
        case CosineSquared(eps):
            return (1 - np.longdouble(eps)) * np.sin(PI * t / 2) ** 2
        case Sine():
            return np.sin(PI * t / 2)
        case Polynomial(exponent):
            with np.errstate(divide="ignore"):  # log1p(-1)
                return -np.expm1(np.longdouble(exponent) * np.log1p(-t))
        case Linear() | Geometric():
            return -np.expm1(-sigma(schedule, t)[0])
    assert_never(schedule)


def textbook_inverse(schedule: Schedule, alpha: Extended) -> Extended:
    match schedule:
        case LogLinear(eps):
            return (1 - alpha) / (1 - np.longdouble(eps))
        case Cosine(eps):
            return 2 / PI * np.arccos((alpha - eps) / (1 - np.longdouble(eps)))
        case CosineSquared(eps):
            return 2 / PI * np.arccos(np.sqrt((alpha - eps) / (1 - np.longdouble(eps))))
        case Sine():
            return 2 / PI * np.arcsin(1 - alpha)
        case Polynomial(exponent):
            return 1 - alpha ** (1 / np.longdouble(exponent))
        case Linear(low, high):
            return (-np.log(alpha) - low) / (np.longdouble(high) - np.longdouble(low))
        case Geometric(low, high):
            return np.log(-np.log(alpha) / low) / np.log(np.longdouble(high) / np.longdouble(low))
    assert_never(schedule)


def extended(values: Tensor) -> Extended:
    return values.double().numpy().astype(np.longdouble)


def times(dtype: torch.dtype) -> Tensor:
    """Times in [1e-4, 1], dense towards both ends."""
    ramp = torch.logspace(-4, 0, 500, dtype=torch.float64)
    return torch.cat((ramp, 1 - ramp[ramp <= 0.9999], torch.ones(1, dtype=torch.float64))).to(dtype)


def is_singular_at_noise(schedule: Schedule) -> bool:
    return isinstance(schedule, Polynomial) and schedule.exponent < 1


@pytest.mark.parametrize(("key", "schedule"), AUTHORS)
def test_schedule_equals_the_authors_values(
    load_vectors: Callable[[str], dict[str, Tensor]], key: str, schedule: Schedule
):
    vectors = load_vectors("schedules")
    t = vectors["in.t"].double()
    authors = {
        quantity: vectors[f"{key}.{quantity}.f64"]
        for quantity in ("total_noise", "rate_noise", "move_chance", "loss_weight")
    }
    alpha, d_alpha = schedule.alpha(t), schedule.d_alpha(t)
    torch.testing.assert_close(-alpha.log(), authors["total_noise"], rtol=1e-6, atol=0)
    torch.testing.assert_close(1 - alpha, authors["move_chance"], rtol=1e-6, atol=0)
    torch.testing.assert_close(-d_alpha / alpha, authors["rate_noise"], rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.loss_weight(t), authors["loss_weight"], rtol=1e-6, atol=0)
    inverse = schedule.inverse((-authors["total_noise"]).exp())
    torch.testing.assert_close(inverse, t, rtol=1e-6, atol=1e-8)  # their constants are float32


@pytest.mark.parametrize(("key", "schedule"), REVERSED)
def test_schedule_in_reversed_time_equals_the_authors_values(
    load_vectors: Callable[[str], dict[str, Tensor]], key: str, schedule: Schedule
):
    """Time from noise to clean, as in flexible-length masked diffusion."""
    vectors = load_vectors("schedules")
    t = vectors["in.t"].double()
    authors = {
        quantity: vectors[f"{key}.{quantity}.f64"]
        for quantity in ("alpha", "alpha_dot", "hazard", "inv_of_alpha")
    }
    torch.testing.assert_close(schedule.alpha(1 - t), authors["alpha"], rtol=1e-6, atol=0)
    torch.testing.assert_close(-schedule.d_alpha(1 - t), authors["alpha_dot"], rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.loss_weight(1 - t), authors["hazard"], rtol=1e-6, atol=0)
    inverse = 1 - schedule.inverse(authors["alpha"])
    torch.testing.assert_close(inverse, authors["inv_of_alpha"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_relative_precision_is_kept_at_both_ends(schedule: Schedule, dtype: torch.dtype, tolerance: float):
    t = times(dtype)
    if is_singular_at_noise(schedule):
        t = t[t < 1]
    exact_t = extended(t)
    exact_d_alpha = textbook_d_alpha(schedule, exact_t)
    computed = {
        "alpha": (schedule.alpha(t), textbook_alpha(schedule, exact_t)),
        "d_alpha": (schedule.d_alpha(t), exact_d_alpha),
        "loss_weight": (schedule.loss_weight(t), -exact_d_alpha / textbook_masked(schedule, exact_t)),
    }
    for name, (values, exact) in computed.items():
        assert values.dtype == dtype
        # Some are 0 at t = 1: there the absolute error counts.
        error = np.abs(extended(values) - exact) / np.maximum(np.abs(exact), 1e-6)
        assert float(error.max()) < tolerance, name


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_is_precise_in_float32(schedule: Schedule):
    """At an alpha that float32 holds exactly; towards alpha = 1 relative to t."""
    t = times(torch.float32)
    alpha = schedule.alpha(t).clamp(min=1e-8)
    lowest = float(textbook_alpha(schedule, np.ones(1, dtype=np.longdouble))[0])
    alpha = alpha[alpha > 1.01 * lowest]
    inverse, exact = extended(schedule.inverse(alpha)), textbook_inverse(schedule, extended(alpha))
    # Total noise that does not start at 0 is subtracted from -log(alpha): absolute precision.
    atol = 0.0 if schedule.is_complete else 2e-6
    np.testing.assert_allclose(inverse, exact, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_inverse_returns_the_time(schedule: Schedule):
    t = times(torch.float64)
    # Where alpha is flat, towards t = 1, its rounding hides the time.
    tolerance = 1e-11 if schedule.is_complete else 1e-10
    steep = schedule.alpha(t) - schedule.alpha(torch.ones_like(t)) > 1e-4
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t))[steep], t[steep], rtol=0, atol=tolerance)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=1e-7)
    noise, clean = schedule.alpha(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    alpha = torch.linspace(noise, clean, 1001, dtype=torch.float64)
    atol = 1e-13 if is_singular_at_noise(schedule) else 1e-14
    torch.testing.assert_close(schedule.alpha(schedule.inverse(alpha)), alpha, rtol=0, atol=atol)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_derivative_equals_finite_differences(schedule: Schedule):
    t, h = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), 1e-5
    differences = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    # The next term of the difference, h^2 alpha''' / 6, is 6e-5 of alpha' for (1 - t)^(1/2) at t = 0.999.
    rtol = 1e-4 if is_singular_at_noise(schedule) else 1e-8
    torch.testing.assert_close(schedule.d_alpha(t), differences, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_loss_weight_is_its_definition(schedule: Schedule):
    t = torch.linspace(0.05, 0.999, 500, dtype=torch.float64)
    definition = -schedule.d_alpha(t) / (1 - schedule.alpha(t))
    torch.testing.assert_close(schedule.loss_weight(t), definition, rtol=1e-11, atol=0)
    assert bool((schedule.loss_weight(times(torch.float32)) >= 0).all())


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_of_log_linear_is_one_over_t_for_any_eps(eps: float, dtype: torch.dtype):
    t = times(dtype)
    assert torch.equal(LogLinear(eps).loss_weight(t), t.reciprocal())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_alpha_falls_all_the_way(schedule: Schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert bool((alpha.diff() < 0).all())
    assert bool((schedule.d_alpha(t) <= 0).all())


@pytest.mark.parametrize("schedule", COMPLETE, ids=repr)
def test_complete_schedules_run_from_one_to_eps(schedule: Schedule):
    assert schedule.is_complete
    for dtype in (torch.float32, torch.float64):
        clean, noise = schedule.alpha(torch.tensor([0.0, 1.0], dtype=dtype))
        assert float(clean) == pytest.approx(1, abs=2 * torch.finfo(dtype).eps)
        assert float(noise) == pytest.approx(getattr(schedule, "eps", 0.0), rel=1e-7)


@pytest.mark.parametrize("schedule", INCOMPLETE, ids=repr)
def test_incomplete_schedules_run_between_their_noises(schedule: Linear | Geometric):
    assert not schedule.is_complete
    alpha = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
    noises = torch.tensor([schedule.sigma_min, schedule.sigma_max], dtype=torch.float64)
    torch.testing.assert_close(alpha, torch.exp(-noises), rtol=1e-12, atol=0)


def test_inverse_takes_every_probability_of_a_complete_schedule():
    """Below eps, where no time has this alpha, the time is 1 or just above."""
    alpha = torch.linspace(0, 1, 101, dtype=torch.float64)
    for schedule in COMPLETE:
        t = schedule.inverse(alpha)
        assert bool(((t >= 0) & (t < 1.2)).all())
        assert float(t[0]) >= 1 - 1e-15
        assert float(t[-1]) == pytest.approx(0, abs=1e-15)
    below = torch.linspace(0, 1e-3, 11, dtype=torch.float64)[:-1]
    for schedule in (LogLinear(), Cosine(), CosineSquared()):
        t = schedule.inverse(below)
        assert bool(((t >= 1) & (t < 1.002)).all())


@pytest.mark.parametrize("eps", [-0.1, 1.0, float("nan")])
def test_eps_outside_its_range_is_refused(eps: float):
    for schedule in (LogLinear, Cosine, CosineSquared):
        with pytest.raises(ValueError, match="eps must be in"):
            schedule(eps)


@pytest.mark.parametrize("exponent", [0.0, -1.0, float("inf"), float("nan")])
def test_exponents_that_are_not_positive_are_refused(exponent: float):
    with pytest.raises(ValueError, match="exponent must be a finite number greater than 0"):
        Polynomial(exponent)


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, float("inf")), (float("nan"), 1.0)]
)
def test_noises_out_of_order_are_refused(low: float, high: float):
    with pytest.raises(ValueError, match="0 <= sigma_min < sigma_max"):
        Linear(low, high)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        Geometric(low, high)


def test_geometric_noise_does_not_start_at_zero():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        Geometric(0.0, 1.0)


def test_schedules_are_values():
    assert LogLinear() == LogLinear(eps=1e-3)
    assert Cosine(0.1) != Cosine(0.2)
    assert Sine() == Sine()
    schedules: list[NoiseSchedule] = list(SCHEDULES)
    assert len(set(schedules)) == len(SCHEDULES)
