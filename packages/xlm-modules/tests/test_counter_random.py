"""The counter-based generator against arbitrary-precision integers, and its statistics; stratified times: one
per stratum in aligned windows, uniform, and independent of the split.

All inputs are fixed, so no test can fail by chance; the bounds are those of 5 standard deviations or more.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

from xlm.modules import nth_largest, row_seeds, stratified_times, uniform

_WORD = 2**64
_GOLDEN = 0x9E3779B97F4A7C15


def mix_exactly(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % _WORD
    return word ^ (word >> 31)


def hash_exactly(*words: int) -> int:
    state = 0
    for word in words:
        state = mix_exactly((state + (word + 1) * _GOLDEN) % _WORD)
    return state


def uniform_exactly(seed: int, position: int, *, step: int, stream: int) -> float:
    return ((hash_exactly(seed, stream, step, position) >> 12) + 0.5) / 2**52


def bits_of(uniforms: Tensor) -> Tensor:
    """The 52 random bits of each number, shape (..., 52)."""
    counters = (uniforms * 2**52 - 0.5).long()
    return (counters.unsqueeze(-1) >> torch.arange(52)) & 1


def chi_square_deviation(cells: Tensor, num_cells: int) -> float:
    """Standard deviations between the chi-square statistic of uniform cells and its expectation."""
    counts = torch.bincount(cells.flatten(), minlength=num_cells).double()
    expected = cells.numel() / num_cells
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (num_cells - 1)) / (2 * (num_cells - 1)) ** 0.5


def all_differ(values: Tensor) -> bool:
    return bool((values.sort().values.diff() != 0).all())


@cache
def neighbours(axis: str, num: int) -> Tensor:
    """Numbers along one axis of the counter, the other axes held fixed."""
    if axis == "seed":
        return uniform(torch.arange(num), 1, step=3, stream=1)[:, 0]
    if axis == "row seed":
        return uniform(row_seeds(7, 2, torch.arange(num)), 1, step=0, stream=0)[:, 0]
    if axis == "step":
        return uniform(torch.full((num,), 11), 1, step=torch.arange(num), stream=1)[:, 0]
    if axis == "position":
        return uniform(torch.tensor([11]), num, step=3, stream=1)[0]
    return torch.cat([uniform(torch.tensor([11]), 1, step=3, stream=stream)[0] for stream in range(num)])


AXES = [("seed", 200_000), ("row seed", 200_000), ("step", 200_000), ("position", 200_000), ("stream", 2_000)]


def test_the_exact_hash_reproduces_the_published_splitmix64_sequence():
    numbers = [mix_exactly((1234567 + (i + 1) * _GOLDEN) % _WORD) for i in range(5)]
    assert numbers == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("step", [0, 1, 1000, 2**31, -1])
@pytest.mark.parametrize("stream", [0, 5, 2**40])
def test_numbers_equal_those_of_exact_integers(step: int, stream: int):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789123456789, -987654321]
    drawn = uniform(torch.tensor(seeds), 6, step=step, stream=stream)
    assert drawn.dtype == torch.float64
    expected = [
        [uniform_exactly(s, position, step=step, stream=stream) for position in range(6)] for s in seeds
    ]
    assert torch.equal(drawn, torch.tensor(expected, dtype=torch.float64))


def test_row_seeds_equal_those_of_exact_integers():
    indices = [0, 1, 2, 10**12, 2**62]
    for seed, epoch in [(0, 0), (42, 3), (-5, 1), (2**63 + 11, 10**6)]:
        seeds = row_seeds(seed, epoch, torch.tensor(indices))
        assert seeds.dtype == torch.int64
        assert [int(s) % _WORD for s in seeds] == [hash_exactly(seed, epoch, index) for index in indices]


def test_narrow_integers_give_the_same_numbers():
    seeds, steps = torch.tensor([3, -4]), torch.tensor([1, 2])
    narrow = uniform(seeds.int(), 3, step=steps.int(), stream=0)
    assert torch.equal(narrow, uniform(seeds, 3, step=steps, stream=0))
    assert torch.equal(row_seeds(1, 2, seeds.int()), row_seeds(1, 2, seeds))


def test_numbers_lie_on_the_symmetric_grid_strictly_inside_the_unit_interval():
    drawn = uniform(row_seeds(0, 0, torch.arange(1000)), 1000, step=0, stream=0)
    odd = drawn * 2.0**53
    assert bool((odd == odd.floor()).all())
    assert bool((odd.long() % 2 == 1).all())
    assert 0 < float(drawn.min()) < 1e-5
    assert 1 - 1e-5 < float(drawn.max()) < 1


def test_a_draw_does_not_depend_on_the_other_rows():
    seeds = row_seeds(1, 0, torch.arange(50))
    together = uniform(seeds, 20, step=4, stream=2)
    chosen = torch.tensor([33, 2, 49])
    assert torch.equal(uniform(seeds[chosen], 20, step=4, stream=2), together[chosen])


def test_a_longer_draw_begins_with_the_shorter_one():
    seeds = torch.arange(4)
    longer = uniform(seeds, 9, step=0, stream=0)
    assert torch.equal(uniform(seeds, 5, step=0, stream=0), longer[:, :5])


def test_steps_of_their_own_equal_separate_calls():
    seeds, steps = torch.tensor([5, 5, 8]), [0, 7, 2**40]
    together = uniform(seeds, 4, step=torch.tensor(steps), stream=1)
    for row, step in enumerate(steps):
        assert torch.equal(uniform(seeds[row : row + 1], 4, step=step, stream=1)[0], together[row])


def test_no_rows_and_no_numbers_are_allowed():
    assert uniform(torch.arange(0), 3, step=0, stream=0).shape == (0, 3)
    assert uniform(torch.arange(3), 0, step=0, stream=0).shape == (3, 0)


def test_the_seed_of_a_run_counts_modulo_two_to_the_64():
    indices = torch.arange(3)
    assert torch.equal(row_seeds(_WORD + 5, 0, indices), row_seeds(5, 0, indices))


@pytest.mark.parametrize(("axis", "num"), AXES)
def test_upper_and_lower_bits_are_uniform_along_each_axis(axis: str, num: int):
    drawn = neighbours(axis, num)
    upper = (drawn * 256).long()
    lower = (drawn * 2**52 - 0.5).long() & 255
    assert abs(chi_square_deviation(upper, 256)) < 5
    assert abs(chi_square_deviation(lower, 256)) < 5


@pytest.mark.parametrize(("axis", "num"), AXES)
@pytest.mark.parametrize("lag", [1, 2, 16])
def test_neighbours_are_independent_along_each_axis(axis: str, num: int, lag: int):
    drawn = neighbours(axis, num)
    first, second = drawn[:-lag], drawn[lag:]
    correlation = float(torch.corrcoef(torch.stack((first, second)))[0, 1])
    assert abs(correlation) * len(first) ** 0.5 < 5
    pairs = (first * 16).long() * 16 + (second * 16).long()
    assert abs(chi_square_deviation(pairs, 256)) < 5


def test_axes_are_independent_of_each_other():
    """A number is another one after exchanging, say, seed and step."""
    words = torch.arange(1000)
    by_seed = uniform(words, 1, step=0, stream=0)[:, 0]
    by_step = uniform(torch.zeros(1000, dtype=torch.int64), 1, step=words, stream=0)[:, 0]
    by_position = uniform(torch.tensor([0]), 1000, step=0, stream=0)[0]
    by_stream = torch.cat([uniform(torch.tensor([0]), 1, step=0, stream=s)[0] for s in range(1000)])
    correlations = torch.corrcoef(torch.stack((by_seed, by_step, by_position, by_stream))[:, 1:])
    assert float((correlations - torch.eye(4)).abs().max()) * 1000**0.5 < 5


def assert_avalanche(before: Tensor, after: Tensor) -> None:
    """Each output bit flips in about half of the cases, and so do about half of the bits of each case."""
    flipped = (bits_of(before) ^ bits_of(after)).double()
    assert float((flipped.mean(0) - 0.5).abs().max()) < 5.5 * 0.5 / len(flipped) ** 0.5
    assert abs(float(flipped.mean()) - 0.5) < 5 * 0.5 / flipped.numel() ** 0.5


@pytest.mark.parametrize("bit", range(64))
def test_avalanche_of_each_bit_of_seed_and_step(bit: int):
    words = row_seeds(3, 0, torch.arange(1500))
    flipped = words ^ (1 << bit if bit < 63 else -(2**63))
    zeros = torch.zeros_like(words)
    assert_avalanche(uniform(words, 1, step=0, stream=0)[:, 0], uniform(flipped, 1, step=0, stream=0)[:, 0])
    assert_avalanche(
        uniform(zeros, 1, step=words, stream=0)[:, 0], uniform(zeros, 1, step=flipped, stream=0)[:, 0]
    )


@pytest.mark.parametrize("bit", range(12))
def test_avalanche_of_the_bits_of_position_stream_epoch_and_index(bit: int):
    positions = torch.arange(4096)
    by_position = uniform(torch.tensor([9]), 4096, step=0, stream=0)[0]
    assert_avalanche(by_position, by_position[positions ^ (1 << bit)])
    seeds = torch.arange(4096)
    by_stream = [uniform(seeds, 1, step=0, stream=stream)[:, 0] for stream in (77, 77 ^ (1 << bit))]
    assert_avalanche(*by_stream)
    by_epoch = [
        uniform(row_seeds(0, epoch, seeds), 1, step=0, stream=0)[:, 0] for epoch in (5, 5 ^ (1 << bit))
    ]
    assert_avalanche(*by_epoch)
    by_index = uniform(row_seeds(0, 0, positions), 1, step=0, stream=0)[:, 0]
    assert_avalanche(by_index, by_index[positions ^ (1 << bit)])


def test_no_collisions_in_a_million_draws_along_all_axes():
    """With 52 bits a collision among a million independent numbers has probability 1e-4."""
    seeds = row_seeds(0, 0, torch.arange(100))
    draws = [uniform(seeds, 100, step=step, stream=stream) for step in range(10) for stream in range(10)]
    assert all_differ(torch.cat(draws).flatten())


def test_a_million_row_seeds_differ():
    seeds = torch.cat(
        [row_seeds(run, epoch, torch.arange(10_000)) for run in range(10) for epoch in range(10)]
    )
    assert all_differ(seeds)


def times_of(places: Tensor, *, stream: int = 0, run: int = 0) -> Tensor:
    return stratified_times(row_seeds(run, 0, places), places, stream=stream)


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


def test_rows_may_have_a_step_and_a_stream_of_their_own() -> None:
    seeds, steps, streams = torch.tensor([3, -4, 3]), torch.tensor([0, 1, 0]), torch.tensor([2, 2, 5])
    found = uniform(seeds, 4, step=steps, stream=streams).tolist()
    for row, (seed, step, stream) in enumerate(
        zip(seeds.tolist(), steps.tolist(), streams.tolist(), strict=True)
    ):
        assert found[row] == [uniform_exactly(seed, place, step=step, stream=stream) for place in range(4)]


@pytest.mark.parametrize("num", [1, 5, 300])
def test_the_nth_largest_number_is_that_of_the_sorted_row(num: int) -> None:
    """Short rows are sorted, in long ones it is selected; equal numbers count one by one."""
    values = uniform(torch.arange(6), num, step=0, stream=0)
    values[:, num // 2 :] = 0.0
    ranks = torch.tensor([0, num - 1, num // 2, num // 3, num // 2 - 1, 0]).clamp(min=0)
    expected = [
        sorted(row, reverse=True)[rank] for row, rank in zip(values.tolist(), ranks.tolist(), strict=True)
    ]
    assert nth_largest(values, ranks).tolist() == expected
