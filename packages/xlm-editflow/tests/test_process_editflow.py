"""The auxiliary process of alignments, its rates, and the times of edits, against enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from xlm_editflow.alignment_editflow import Alignment as Name
from xlm_editflow.alignment_editflow import align
from xlm_editflow.times_editflow import Hazard

from .exact_editflow import (
    BLANK,
    FIRST,
    Alignment,
    Text,
    between,
    generated,
    num_edits,
    oracle,
    pending_sets,
    texts,
    total_variation,
)
from .exact_steps_editflow import after_step, deleted, generated_in_steps

A, B = FIRST, FIRST + 1
EVERY = texts(2, 3)
DATA = {(): 0.1, (A,): 0.2, (A, B): 0.4, (B, B): 0.3}
SOURCES = {(): 0.4, (A,): 0.35, (B,): 0.25}


def aligned(name: Name, source: Text, target: Text, seed: int = 0) -> Alignment:
    ids = [torch.tensor([text], dtype=torch.int64).flatten() for text in (source, target)]
    z0, z1 = align(name, ids[:1], ids[1:], torch.tensor([seed]))
    columns = [pair for pair in zip(z0[0].tolist(), z1[0].tolist(), strict=True) if pair != (BLANK, BLANK)]
    return tuple(a for a, _ in columns), tuple(b for _, b in columns)


def edit_distance(source: Text, target: Text) -> int:
    if not source or not target:
        return len(source) + len(target)
    last = edit_distance(source[:-1], target[:-1]) + (source[-1] != target[-1])
    return min(last, 1 + edit_distance(source[:-1], target), 1 + edit_distance(source, target[:-1]))


@pytest.mark.parametrize("name", ["optimal", "left", "disjoint"])
def test_alignments_spell_source_and_target(name: Name) -> None:
    pairs = list(itertools.product(EVERY, EVERY))
    sources, targets = ([torch.tensor([*pair[side]], dtype=torch.int64) for pair in pairs] for side in (0, 1))
    z0, z1 = align(name, sources, targets, torch.arange(len(pairs)))
    for row, (source, target) in enumerate(pairs):
        columns = list(zip(z0[row].tolist(), z1[row].tolist(), strict=True))
        number = sum(pair != (BLANK, BLANK) for pair in columns)
        assert (BLANK, BLANK) not in columns[:number]
        assert tuple(a for a, _ in columns if a != BLANK) == source
        assert tuple(b for _, b in columns if b != BLANK) == target
        edits = sum(a != b for a, b in columns)
        if name == "optimal":
            assert edits == edit_distance(source, target)
        elif name == "left":
            assert number == max(len(source), len(target))
        else:
            assert edits == len(source) + len(target)
            assert not any(a != BLANK and b != BLANK for a, b in columns)


def test_ties_of_the_optimal_alignment_are_drawn_from_the_seed() -> None:
    """Of aa and a, either token stays; of ab and ba, there are three alignments with two edits."""
    found = [aligned("optimal", (A, A), (A,), seed) for seed in range(100)]
    assert set(found) == {((A, A), (A, BLANK)), ((A, A), (BLANK, A))}
    assert sum(z1 == (A, BLANK) for _, z1 in found) == pytest.approx(50, abs=20)
    assert found == [aligned("optimal", (A, A), (A,), seed) for seed in range(100)]
    both = {aligned("optimal", (A, B), (B, A), seed) for seed in range(60)}
    assert both == {((A, B), (B, A)), ((A, B, BLANK), (BLANK, B, A)), ((BLANK, A, B), (B, A, BLANK))}


def pairs_of(name: Name) -> list[tuple[float, Alignment]]:
    return [
        (p * q, aligned(name, source, target))
        for (source, p), (target, q) in itertools.product(SOURCES.items(), DATA.items())
    ]


@pytest.mark.parametrize("name", ["optimal", "left", "disjoint"])
def test_the_rates_of_the_data_generate_it_from_any_source(name: Name) -> None:
    found = generated(oracle(pairs_of(name)), EVERY, SOURCES)
    assert total_variation(found, DATA) < 1e-5


def test_the_alignment_decides_which_edits_there_are() -> None:
    """Without substitutions in the alignments none is made, and the rates are others."""
    u = np.array([0.5])
    kinds = {
        name: {kind for (kind, _, _), rate in oracle(pairs_of(name))((A,), u).items() if rate[0] > 0}
        for name in ("optimal", "disjoint")
    }
    assert kinds == {"optimal": {"insert", "delete", "substitute"}, "disjoint": {"insert", "delete"}}


def test_a_token_has_one_pending_edit_at_most_so_its_rates_add_up_to_1_at_most() -> None:
    for name in ("optimal", "left", "disjoint"):
        rates = oracle(pairs_of(name))
        for text in [(A,), (B,), (A, B), (B, B)]:
            found = rates(text, np.array([0.9, 0.3]))
            for place in range(len(text)):
                own = [rate for (kind, at, _), rate in found.items() if kind != "insert" and at == place]
                assert float(sum(own, np.zeros(2)).max()) <= 1 + 1e-12


@pytest.mark.parametrize("is_poisson", [False, True])
def test_steps_converge_as_one_by_their_number(is_poisson: bool) -> None:
    """1 - u'/u is the probability of a pending edit in a step; too small a one leaves edits undone."""
    rates = oracle(pairs_of("optimal"))
    distances = [
        total_variation(generated_in_steps(rates, SOURCES, number, 3, is_poisson=is_poisson), DATA)
        for number in (4, 8, 16)
    ]
    assert distances[0] / distances[1] == pytest.approx(2, abs=0.5)
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.35)
    reached = dict(SOURCES)
    for step in range(8):
        u = 1 - step / 8
        reached = after_step(rates, reached, u, min(1 / 8 / u, 1.0) * 0.5, 3)
    assert total_variation(reached, DATA) > 2 * distances[1]


def test_deletions_lead_back_to_the_process_from_nothing() -> None:
    """Reverse moves from time v to u > v keep its distribution at u, and steps with them converge."""

    def at(u: float) -> dict[Text, float]:
        found: dict[Text, float] = {}
        for target, mass in DATA.items():
            alignment = (BLANK,) * len(target), target
            for pending in pending_sets(alignment):
                text, _ = between(alignment, pending)
                chance = u ** len(pending) * (1 - u) ** (num_edits(alignment) - len(pending))
                found[text] = found.get(text, 0.0) + mass * chance
        return found

    assert total_variation(deleted(at(0.2), (0.5 - 0.2) / (1 - 0.2)), at(0.5)) < 1e-12
    rates = oracle([(mass, ((BLANK,) * len(text), text)) for text, mass in DATA.items()])
    distances = [
        total_variation(generated_in_steps(rates, {(): 1.0}, number, 3, correction=1.0), DATA)
        for number in (8, 16, 32)
    ]
    assert distances[0] > 1.5 * distances[1] > 1.5**2 * distances[2]


def test_the_time_of_the_next_edit_inverts_the_integral_of_the_rates() -> None:
    """R(u) = c u + d, linear in log u between 200 points: the integral is c (u - u') + d log(u / u')."""
    log_start, points = torch.tensor([0.0, -1.0], dtype=torch.float64), 200
    width = (log_start + 7.0) / (points - 1)
    log_time = log_start.unsqueeze(1) - torch.arange(points) * width.unsqueeze(1)
    c, d = (
        torch.tensor([[3.0], [0.5]], dtype=torch.float64),
        torch.tensor([[0.1], [0.0]], dtype=torch.float64),
    )
    hazard = Hazard(log_start, width, c * log_time.exp() + d)
    for v in (0.999, 0.9, 0.7):
        found = hazard.draw(torch.full((2,), v, dtype=torch.float64))
        integral = c[:, 0] * (log_start.exp() - found.exp()) + d[:, 0] * (log_start - found)
        reached = found > -math.inf
        assert torch.allclose(integral[reached], torch.tensor(-math.log(v), dtype=torch.float64), atol=1e-3)
        until, rate = hazard.until(found.clamp(min=-6.9))
        assert torch.allclose(until[reached], torch.tensor(-math.log(v), dtype=torch.float64), atol=1e-9)
        expected = c[:, 0] * found.exp() + d[:, 0]
        assert torch.allclose(rate[reached], expected[reached], atol=1e-3)
    # All of the second row's rates add up to 0.5 (e^-1 - e^-7): it has no edit for smaller numbers.
    assert hazard.draw(torch.tensor([0.83, 0.83], dtype=torch.float64)).isinf().tolist() == [False, True]
    assert hazard.until(torch.tensor([-8.0, -8.0], dtype=torch.float64))[1].tolist() == [0.0, 0.0]
