"""Stratified times: one per stratum in aligned windows, uniform, and independent of the split."""

import pytest
import torch
from torch import Tensor

from xlm.modules import row_seeds, stratified_times, uniform


def times_of(places: Tensor, *, stream: int = 0, run: int = 0) -> Tensor:
    return stratified_times(row_seeds(run, 0, places), places, stream=stream)


def chi_square_deviation(cells: Tensor, num_cells: int) -> float:
    """Standard deviations between the chi-square statistic of uniform cells and its expectation."""
    counts = torch.bincount(cells.flatten(), minlength=num_cells).double()
    expected = cells.numel() / num_cells
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (num_cells - 1)) / (2 * (num_cells - 1)) ** 0.5


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("first_window", [0, 1, 2**20 - 3, 2**40 + 5])
def test_each_stratum_of_an_aligned_window_has_one_time(k: int, first_window: int):
    size = 2**k
    for window in range(first_window, first_window + 5):
        strata = (times_of(torch.arange(window * size, (window + 1) * size), stream=3) * size).long()
        assert torch.equal(strata.sort().values, torch.arange(size))


def test_times_are_the_same_however_the_stream_is_split():
    places = torch.arange(5000, 5096)
    together = times_of(places)
    ranks = [times_of(places[rank::3]) for rank in range(3)]
    assert torch.equal(torch.stack(ranks, dim=1).flatten(), together)
    order = torch.randperm(96)
    assert torch.equal(times_of(places[order]), together[order])
    assert torch.equal(times_of(places[7:8]), together[7:8])
    narrow = stratified_times(row_seeds(0, 0, places), places.int(), stream=0)
    assert torch.equal(narrow, together)


def test_digits_equal_those_of_exact_integers():
    """Digit j is bit j of the place, flipped by bit 51 of a d + b, with d the digits before it."""
    seeds, places, stream = row_seeds(0, 0, torch.arange(64)), torch.arange(64) * 1_234_567, 3
    expected: list[int] = []
    for place in places.tolist():
        digits = 0
        for bit in range(20):
            window = torch.tensor([(place >> (bit + 1)) * 20 + bit])
            factor, summand = (int(u * 2**52) for u in uniform(window, 2, step=0, stream=stream)[0].tolist())
            digits = 2 * digits + ((place >> bit) & 1 ^ ((factor * digits + summand) >> 51) & 1)
        expected.append(digits)
    times = stratified_times(seeds, places, stream=stream)
    assert (times * 2**20).long().tolist() == expected


def test_times_lie_on_the_grid_of_uniform_numbers():
    odd = times_of(torch.arange(10_000)) * 2.0**53
    assert bool((odd == odd.floor()).all())
    assert bool((odd.long() % 2 == 1).all())
    assert float(odd.min()) > 0
    assert float(odd.max()) < 2.0**53


@pytest.mark.parametrize(
    "places",
    [
        torch.arange(0, 2**17, 2),  # one of two ranks
        torch.arange(5, 2**19, 8),  # the same row of each batch of eight
        torch.arange(7, 7 + 3 * 2**16, 3),
        row_seeds(0, 0, torch.arange(2**16)) & (2**40 - 1),
    ],
    ids=["rank", "row", "thirds", "random"],
)
def test_times_are_uniform_over_parts_of_the_stream(places: Tensor):
    times = times_of(places)
    assert chi_square_deviation((times * 128).long(), 128) < 5
    lower_bits = (times * 2.0**52 - 0.5).long() & 127
    assert abs(chi_square_deviation(lower_bits, 128)) < 5


def test_the_time_of_a_place_is_uniform_over_the_streams():
    times = torch.stack([times_of(torch.tensor([0, 5, 77]), stream=stream) for stream in range(500)])
    for column in range(3):
        assert abs(chi_square_deviation((times[:, column] * 16).long(), 16)) < 5


def test_times_are_independent_inside_their_strata():
    """Offsets of the times of one window in their strata, over many windows: no pair moves together."""
    offsets = (times_of(torch.arange(8 * 5000)).view(5000, 8) * 8) % 1
    assert abs(chi_square_deviation((offsets * 32).long(), 32)) < 5
    correlations = torch.corrcoef(offsets.T)
    assert float((correlations - torch.eye(8)).abs().max()) * 5000**0.5 < 5


def test_orders_of_the_strata_change_from_window_to_window():
    orders = (times_of(torch.arange(4 * 1000)).view(1000, 4) * 4).long()
    # The two times of a pair lie in different halves, which leaves 16 of the 24 orders.
    distinct, counts = orders.unique(dim=0, return_counts=True)
    assert len(distinct) == 16
    assert abs(float(((counts - 62.5) ** 2 / 62.5).sum()) - 15) < 5 * 30**0.5


def test_means_over_batches_are_less_noisy_than_with_independent_times():
    """Mean of t^2 over batches of 16: variance near 1 / (3 * 16^3) against (4 / 45) / 16."""
    squares = times_of(torch.arange(16 * 2000)).view(2000, 16).square()
    independent = stratified_times(row_seeds(0, 0, torch.arange(32_000)), None, stream=0).view(2000, 16)
    assert float(squares.mean(1).var()) < 1.5 / (9 * 16**3)
    assert float(independent.square().mean(1).var()) == pytest.approx(4 / 45 / 16, rel=0.15)
    assert float(squares.mean()) == pytest.approx(1 / 3, abs=1e-4)


def test_seeds_decide_the_last_bits_and_streams_all_of_them():
    places = torch.arange(1000)
    difference = (times_of(places, run=0) - times_of(places, run=1)).abs()
    assert 0 < float(difference.max()) < 2.0**-20
    correlation = float(torch.corrcoef(torch.stack((times_of(places), times_of(places, stream=1))))[0, 1])
    assert abs(correlation) * 1000**0.5 < 5


def test_without_places_times_are_independent_draws_of_the_rows():
    seeds = row_seeds(3, 1, torch.arange(1000))
    times = stratified_times(seeds, None, stream=2)
    assert torch.equal(times, uniform(seeds, 1, step=0, stream=2)[:, 0])


def test_no_rows_are_allowed():
    empty = torch.zeros(0, dtype=torch.int64)
    assert stratified_times(empty, empty, stream=0).shape == (0,)
    assert stratified_times(empty, None, stream=0).shape == (0,)
