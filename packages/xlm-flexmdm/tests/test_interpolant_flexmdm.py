import numpy as np
import pytest
import torch
from torch import Tensor

from xlm.modules import Cosine, Geometric, LogLinear, NoiseSchedule, Polynomial, Sine
from xlm_flexmdm import Interpolant

LINEAR = LogLinear(eps=0)
PUBLISHED: dict[str, NoiseSchedule] = {
    "linear": LINEAR,
    "sin": Cosine(eps=0),
    "cosine": Sine(),
    "poly2": Polynomial(2.0),
    "geometric_10_0.01": Geometric(sigma_min=0.01, sigma_max=10.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedules_are_the_published_ones_read_backwards(name: str, reference: dict[str, Tensor]) -> None:
    t = reference["schedules.t"].double()
    for interpolant in (Interpolant(PUBLISHED[name], LINEAR), Interpolant(LINEAR, PUBLISHED[name])):
        forward = interpolant.insertion is PUBLISHED[name]
        value = interpolant.alpha(t) if forward else interpolant.beta(t)
        hazard = interpolant.insertion_hazard(t) if forward else interpolant.unmasking_hazard(t)
        torch.testing.assert_close(value, reference[f"schedules.{name}.alpha.f64"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(hazard, reference[f"schedules.{name}.hazard.f64"], rtol=1e-6, atol=1e-12)


def test_time_input() -> None:
    t = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    assert torch.equal(Interpolant(Sine(), LINEAR).network_time(t), t)
    given = Interpolant(Sine(), LINEAR, time_input="alpha").network_time(t)
    torch.testing.assert_close(given, 1 - torch.cos(torch.pi / 2 * t))
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match="'sigma'"):
        Interpolant(LINEAR, LINEAR, time_input="sigma")  # pyright: ignore[reportArgumentType]  # what is refused


def test_completeness() -> None:
    complete = (LINEAR, Cosine(eps=0), Sine(), Polynomial(3.0))
    for schedule in complete:
        assert Interpolant(schedule, LINEAR).is_complete
        assert Interpolant(LINEAR, schedule).is_complete
    for schedule in (LogLinear(eps=1e-3), Cosine(eps=1e-3), PUBLISHED["geometric_10_0.01"]):
        assert not Interpolant(schedule, LINEAR).is_complete
        assert not Interpolant(LINEAR, schedule).is_complete
    start, end, _, _ = Interpolant(PUBLISHED["geometric_10_0.01"], LINEAR).endpoints
    assert start == pytest.approx(4.54e-5, rel=1e-3)
    assert end == pytest.approx(0.99, rel=1e-3)


@pytest.mark.parametrize(
    ("insertion", "unmasking"),
    [
        ("linear", "linear"),
        ("sin", "linear"),
        ("poly2", "cosine"),
        ("geometric_10_0.01", "linear"),
        ("linear", "geometric_10_0.01"),
    ],
)
def test_states_follow_the_interpolant(insertion: str, unmasking: str) -> None:
    """Shares of absent and masked tokens over a grid of both uniform numbers, against a quadrature."""
    interpolant = Interpolant(PUBLISHED[insertion], PUBLISHED[unmasking])
    number = 400
    levels = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    for time in (0.05, 0.5, 0.95):
        t = torch.tensor([[time]], dtype=torch.float64)
        first, second = levels.repeat_interleave(number), levels.repeat(number)
        present, masked = interpolant.states(t, first.unsqueeze(0), second.unsqueeze(0))
        assert not (masked & ~present).any()
        alpha = float(interpolant.alpha(t))
        assert float(present.double().mean()) == pytest.approx(alpha, abs=2 / number)
        assert float(masked.double().mean()) == pytest.approx(_masked(interpolant, time), abs=4 / number)


def _masked(interpolant: Interpolant, time: float) -> float:
    """Integral of alpha'(s) (1 - beta(t)) / (1 - beta(s)) over [0, t], and alpha(0) more at s = 0."""
    s = torch.linspace(0, time, 8001, dtype=torch.float64)
    still = ((1 - interpolant.beta(s[-1])) / (1 - interpolant.beta(s))).numpy()
    alpha = interpolant.alpha(s).numpy()
    return float(alpha[0] * still[0] + np.sum(np.diff(alpha) * (still[1:] + still[:-1]) / 2))


def test_mask_share_of_linear_schedules() -> None:
    t = np.linspace(0.01, 0.99, 9)
    expected = -(1 - t) * np.log(1 - t)
    found = [_masked(Interpolant(LINEAR, LINEAR), time) for time in t]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
