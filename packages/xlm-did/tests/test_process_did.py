"""The deletion process, its reversal and the closed forms in time, against enumeration."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm_did.clocks_did import FirstHitting, Steps
from xlm_did.missing_did import (
    log_any_appears,
    log_density,
    log_expected,
    log_none_missing,
    log_numbers,
    log_thinned,
    log_total,
    next_time,
)

from .exact_did import (
    Text,
    deleted_pairs,
    generated,
    generated_in_steps,
    inserted,
    kept_sets,
    num_embeddings,
    oracle,
    random_distribution,
    rest_of,
    reverse_rates,
    texts,
    total_variation,
)

DATA = random_distribution(2, range(4), seed=1)
EVERY = texts(2, 3)


def rests(text: Text) -> set[Text]:
    return {rest_of(text, kept) for n in range(len(text) + 1) for kept in kept_sets(text, n)}


def test_reverse_rates_are_means_over_embeddings_and_add_up_to_what_is_missing() -> None:
    for text in EVERY:
        for rest in rests(text):
            missing = len(text) - len(rest)
            rates = reverse_rates(rest, text)
            assert sum(rates.values()) == pytest.approx(missing, abs=1e-12)
            embeddings = [kept for kept in kept_sets(text, missing) if rest_of(text, kept) == rest]
            counts = Counter(pair for kept in embeddings for pair in deleted_pairs(text, kept))
            for pair, rate in rates.items():
                assert rate == pytest.approx(counts[pair] / len(embeddings), abs=1e-12)


def prefix_tables(rest: Text, text: Text) -> np.ndarray:
    """log of the numbers of embeddings of the first c tokens of the rest in the first i of the text."""
    table = np.full((len(text) + 1, len(rest) + 1), -math.inf)
    table[:, 0] = 0.0
    for i, c in itertools.product(range(len(text)), range(len(rest))):
        table[i + 1, c + 1] = table[i, c + 1]
        if text[i] == rest[c]:
            table[i + 1, c + 1] = np.logaddexp(table[i, c + 1], table[i, c])
    return table


def rates_by_dynamic_programme(rest: Text, text: Text) -> dict[tuple[int, int], float]:
    """rho in O(|y| |x|): prefixes on the left of token i, suffixes on its right."""
    prefix, suffix = prefix_tables(rest, text), prefix_tables(rest[::-1], text[::-1])
    log_number = prefix[len(text), len(rest)]
    rates: Counter[tuple[int, int]] = Counter()
    for i, slot in itertools.product(range(len(text)), range(len(rest) + 1)):
        right = suffix[len(text) - i - 1, len(rest) - slot]
        rates[slot, text[i]] += math.exp(prefix[i, slot] + right - log_number)  # pyright: ignore[reportArgumentType]  # a Counter of floats
    return dict(rates)


def test_the_dynamic_programme_gives_the_reverse_rates() -> None:
    """The audit of the labelled loss, which needs no numbers of embeddings."""
    for text in EVERY:
        for rest in rests(text):
            assert rates_by_dynamic_programme(rest, text) == pytest.approx(
                reverse_rates(rest, text), abs=1e-12
            )
    text, rest = (3, 4, 3, 3, 4, 4, 3, 4, 3, 3) * 12, (3, 4, 4, 3, 3) * 12
    rates = rates_by_dynamic_programme(rest, text)
    assert sum(rates.values()) == pytest.approx(60.0, rel=1e-9)
    pair = (7, 3)
    assert rates[pair] == pytest.approx(
        num_embeddings(inserted(rest, pair), text) / num_embeddings(rest, text)
    )


def test_the_posterior_of_the_number_missing_has_the_time_in_closed_form() -> None:
    """P(n | y, u) from the deletion probabilities is proportional to A_n u^n, with A_n free of u."""
    rates = oracle(DATA)
    for rest in texts(2, 2):
        numbers = rates.numbers(rest)
        for u in (0.1, 0.5, 0.97):
            posterior = np.zeros_like(numbers)
            for text, probability in DATA.items():
                if (n := len(text) - len(rest)) >= 0:
                    deletion = num_embeddings(rest, text) * (1 - u) ** len(rest) * u**n
                    posterior[n] += probability * deletion
            tilted = numbers * u ** np.arange(len(numbers))
            assert posterior / posterior.sum() == pytest.approx(tilted / tilted.sum(), abs=1e-14)


def test_the_reversal_generates_the_data() -> None:
    assert generated(oracle(DATA), EVERY) == pytest.approx(DATA, abs=1e-8)


def test_exact_counts_converge_as_one_by_the_number_of_steps() -> None:
    distances = [total_variation(generated_in_steps(oracle(DATA), number), DATA) for number in (4, 8, 16)]
    assert distances[0] / distances[1] == pytest.approx(2, abs=0.3)
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.2)
    assert distances[2] < 0.05


LOG_A = torch.tensor(
    [[0.3, -1.0, 0.5, -2.0], [-6.0, 2.0, 0.0, -torch.inf], [1.0, -9.0, -torch.inf, -torch.inf]],
    dtype=torch.float64,
)
LOG_TIME = torch.tensor([0.0, -0.4, -3.0], dtype=torch.float64)


def total(log_a: Tensor, u: Tensor) -> Tensor:
    return (log_a.exp() * u.unsqueeze(1) ** torch.arange(log_a.shape[1])).sum(1)


def test_functions_of_the_time_equal_their_definitions() -> None:
    u, number = LOG_TIME.exp(), torch.arange(4)
    z = total(LOG_A, u)
    weights = LOG_A.exp() * u.unsqueeze(1) ** number
    assert torch.allclose(log_total(LOG_A, LOG_TIME).exp(), z)
    assert torch.allclose(log_expected(LOG_A, LOG_TIME).exp(), (weights * number).sum(1) / z)
    assert torch.allclose(log_none_missing(LOG_A, LOG_TIME).exp(), weights[:, 0] / z)
    # The density of the next time is minus the derivative of the survival.
    later, step = u * 0.6, 1e-6
    slope = (total(LOG_A, later + step) - total(LOG_A, later - step)) / (2 * step) / z
    assert torch.allclose(log_density(LOG_A, LOG_TIME, later.log()).exp(), slope, rtol=1e-6)


def test_numbers_are_logits_with_the_number_of_subsets_and_end_at_the_budget() -> None:
    found = log_numbers(torch.zeros(3, 5), torch.tensor([0, 2, 7]), torch.tensor([9, 2, 3]))
    expected = [[1, 1, 1, 1, 1], [1, 3, 6, 0, 0], [1, 8, 36, 120, 0]]
    assert torch.allclose(found.exp(), torch.tensor(expected, dtype=torch.float64))
    assert found.dtype == torch.float64


def test_the_next_time_inverts_the_survival() -> None:
    """Z(u') = A_0 + v (Z(u) - A_0), to the precision of float64, however small v and the masses are."""
    for v in (1e-12, 1e-3, 0.37, 1 - 1e-9):
        found = next_time(LOG_A, LOG_TIME, torch.full((3,), v, dtype=torch.float64))
        reached = LOG_A[:, 1:] + torch.arange(1, 4) * found.unsqueeze(1)
        start = LOG_A[:, 1:] + torch.arange(1, 4) * LOG_TIME.unsqueeze(1)
        assert torch.allclose(reached.logsumexp(1), math.log(v) + start.logsumexp(1), atol=1e-13, rtol=0)
        assert bool((found <= LOG_TIME).all())


def test_jumps_of_the_first_hitting_clock_follow_the_survival() -> None:
    """Uniform numbers on a grid: the fraction that stops, and the quantiles of the times of the others."""
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    uniforms = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).flatten(0, 1)
    uniforms = torch.nn.functional.pad(uniforms, (0, 2), value=0.5)
    for row in range(3):
        log_a, log_time = (table[row].expand(len(uniforms), *table.shape[1:]) for table in (LOG_A, LOG_TIME))
        jump = FirstHitting().draw(log_a, log_time, uniforms)
        complete = float(log_none_missing(log_a[:1], log_time[:1]).exp())
        assert float((jump.number == 0).double().mean()) == pytest.approx(complete, abs=0.005)
        assert torch.equal(jump.log_time, jump.log_next)
        for fraction in (0.3, 0.8):
            end = log_time[:1] + math.log(fraction)
            survives = (jump.number == 0) | (jump.log_time < end)
            survival = total(log_a[:1], end.exp()) / total(log_a[:1], log_time[:1].exp())
            assert float(survives.double().mean()) == pytest.approx(float(survival), abs=0.006)


def test_numbers_of_a_step_add_up_and_their_mean_is_the_number_that_appears() -> None:
    ratio = torch.tensor([0.25, 0.9, 0.0], dtype=torch.float64)
    chances = log_thinned(LOG_A, LOG_TIME, ratio, 3).exp().T
    assert torch.allclose(chances.sum(0), torch.ones(3, dtype=torch.float64))
    expected = log_expected(LOG_A, LOG_TIME).exp() * (1 - ratio)
    assert torch.allclose((chances * torch.arange(4).unsqueeze(1)).sum(0), expected)
    z = total(LOG_A, LOG_TIME.exp())
    assert torch.allclose(chances[0], total(LOG_A, LOG_TIME.exp() * ratio) / z)
    assert torch.allclose(log_any_appears(LOG_A, LOG_TIME, ratio).exp(), 1 - chances[0])


@pytest.mark.parametrize("start", [0, 2])
def test_jumps_of_equal_steps_have_the_exact_number_of_tokens(start: int) -> None:
    """Of 4 steps from the beginning or the middle: which step comes next, and with how many tokens."""
    rows, clock = 40_000, Steps(4)
    uniforms = torch.rand(rows, 4, generator=torch.Generator().manual_seed(start), dtype=torch.float64)
    log_a = LOG_A[:1].expand(rows, -1)
    log_start = torch.tensor([1 - start / 4], dtype=torch.float64).log()
    jump = clock.draw(log_a, log_start.expand(rows), uniforms)
    time = jump.log_time.exp()
    found = Counter(zip(((1 - time) * 4).round().long().tolist(), jump.number.tolist(), strict=True))
    for step in range(start, 4):
        begin, end = 1 - step / 4, 1 - (step + 1) / 4
        begins = torch.tensor([begin], dtype=torch.float64)
        survival = total(LOG_A[:1], begins) / total(LOG_A[:1], log_start.exp())
        for number in range(1, 4):
            ratio = torch.tensor([end / begin], dtype=torch.float64)
            chance = log_thinned(LOG_A[:1], begins.log(), ratio, number)[:, number].exp() * survival
            error = 4 * math.sqrt(float(chance) / rows) + 1e-9
            assert found[step, number] / rows == pytest.approx(float(chance), abs=error)
    ends = jump.number > 0
    assert torch.allclose(jump.log_next.exp()[ends], time[ends] - 0.25)
    complete = float(log_none_missing(LOG_A[:1], log_start).exp())
    assert float((~ends).double().mean()) == pytest.approx(complete, abs=0.011)
