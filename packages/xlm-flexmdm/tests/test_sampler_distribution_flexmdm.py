"""The distribution of the samplers against its enumeration, step by step, over texts of up to three tokens.

A statistic of k degrees of freedom above k + 5 sqrt(2k) has a probability below 1e-4.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from xlm.modules import Cosine, LogLinear, Sine
from xlm_flexmdm import FlexMDMPredictor, FlexMDMPromptBatch, Interpolant
from xlm_flexmdm.interpolant_flexmdm import Sampler
from xlm_flexmdm.predictor_flexmdm import Rank

from .exact_flexmdm import (
    BOS,
    FIRST,
    MASK,
    PAD,
    Array,
    Index,
    Posterior,
    TableNetwork,
    Tables,
    Text,
    read_texts,
    states,
    texts,
)
from .exact_sampler_flexmdm import chi_square, sampler_distribution, steps_of, total_variation

LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))
SUPPRESSED = (PAD, MASK, BOS)
SMALL = Index(states(2, 3), 2)


def random_tables(seed: int, least_gap: float = 0.0) -> Callable[[float], Tables]:
    generator = np.random.default_rng(seed)
    gaps = least_gap + generator.exponential(size=(SMALL.size, 4)) * 1.5
    distributions = generator.dirichlet([1.0, 1.0], size=(SMALL.size, 3))
    return lambda time: Tables((1 - time) * gaps, distributions)


def prompts(rows: int, longest: int) -> FlexMDMPromptBatch:
    one = torch.ones(rows, 1, dtype=torch.int64)
    return {
        "input_ids": one * BOS,
        "attention_mask": one.bool(),
        "open_slots": one.bool(),
        "target_start": one.squeeze(1),
        "budget": one.squeeze(1) * longest,
    }


def _draw(
    network: TableNetwork,
    rows: int,
    *,
    num_steps: int,
    interpolant: Interpolant = LINEAR,
    sampler: Sampler = "hazard_integrated",
    rank: Rank = "random",
    longest: int = 3,
    temperature: float = 1.0,
    **options: Any,
) -> dict[Text, int]:
    predict = FlexMDMPredictor(
        interpolant=interpolant,
        mask_id=MASK,
        pad_id=PAD,
        num_steps=num_steps,
        suppressed_ids=SUPPRESSED,
        sampler=sampler,
        rank=rank,
        temperature=temperature,
        **options,
    )
    prediction = predict(network, prompts(rows, longest), torch.arange(rows) + 17)
    return dict(Counter(read_texts(prediction.ids, prediction.lengths)))


def _assert_same_distribution(found: dict[Text, int], distribution: dict[Text, float]) -> None:
    statistic, freedom = chi_square(found, distribution)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom), f"chi-square {statistic} with {freedom}"


def test_one_step_of_insertions() -> None:
    """With two steps, the first inserts from nothing and the second unmasks everything."""
    tables = random_tables(seed=1)
    gap = min(tables(0.0).gaps[SMALL.numbers[()], 0], 3)
    found = _draw(TableNetwork(SMALL, tables), 5000, num_steps=2)
    lengths = Counter(len(text) for text in found for _ in range(found[text]))
    masses = [math.exp(-gap / 2) * (gap / 2) ** k / math.factorial(k) for k in range(3)]
    distribution: dict[Text, float] = {(0,) * k: mass for k, mass in enumerate([*masses, 1 - sum(masses)])}
    _assert_same_distribution({(0,) * length: number for length, number in lengths.items()}, distribution)


Formula = Callable[[float], float]
_HALF = math.pi / 2
FORMULAS: dict[str, tuple[Interpolant, Formula, Formula, Formula, Formula]] = {
    "linear": (LINEAR, lambda t: t, lambda t: t, lambda t: 1 / (1 - t), lambda t: 1 / (1 - t)),
    "sine_cosine": (
        Interpolant(Cosine(eps=0), Sine()),
        lambda t: math.sin(_HALF * t),
        lambda t: 1 - math.cos(_HALF * t),
        lambda t: _HALF * math.cos(_HALF * t) / (1 - math.sin(_HALF * t)),
        lambda t: _HALF * math.tan(_HALF * t),
    ),
}
"""Interpolants, and alpha, beta and their hazards written out."""


@pytest.mark.parametrize("sampler", ["hazard_integrated", "tau_leaping"])
@pytest.mark.parametrize("schedules", FORMULAS)
def test_distribution_of_the_sampler(sampler: Sampler, schedules: str) -> None:
    tables = random_tables(seed=2)
    interpolant, *formulas = FORMULAS[schedules]
    alpha, beta, *hazards = formulas
    held = None if sampler == "hazard_integrated" else (hazards[0], hazards[1])
    steps = steps_of(4, alpha, beta, held)
    distribution = sampler_distribution(SMALL, tables, steps, longest=3)
    assert sum(distribution.values()) == pytest.approx(1, abs=1e-9)
    network = TableNetwork(SMALL, tables)
    found = _draw(network, 5000, num_steps=4, interpolant=interpolant, sampler=sampler)
    _assert_same_distribution(found, distribution)


SCORES: dict[Rank, Callable[[int, Array], float]] = {
    "left_to_right": lambda cell, distribution: -cell,
    "top_prob": lambda cell, distribution: float(distribution.max()),
    "margin": lambda cell, distribution: float(abs(distribution[0] - distribution[1])),
    "entropy": lambda cell, distribution: float((distribution * np.log(distribution)).sum()),
}


@pytest.mark.parametrize("rank", SCORES)
def test_distribution_of_ordered_unmasking(rank: Rank) -> None:
    """As many masks as drawn one by one, the best first: the number has the hazard in it."""
    tables = random_tables(seed=3, least_gap=2.0)
    steps = steps_of(4, lambda t: t, lambda t: t)
    distribution = sampler_distribution(SMALL, tables, steps, longest=3, score=SCORES[rank])
    assert total_variation(distribution, sampler_distribution(SMALL, tables, steps, longest=3)) > 0.01
    _assert_same_distribution(_draw(TableNetwork(SMALL, tables), 5000, num_steps=4, rank=rank), distribution)


def more_above(tau: float) -> Callable[[list[float], list[Array]], int]:
    return lambda scores, distributions: sum(score > tau for score in scores)


def more_within(gamma: float) -> Callable[[list[float], list[Array]], int]:
    """The longest prefix whose entropies, without the largest, add up to at most gamma."""

    def number(scores: list[float], distributions: list[Array]) -> int:
        entropies = [-float((part * np.log(part)).sum()) for part in distributions]
        sums = [sum(entropies[: k + 1]) - max(entropies[: k + 1]) for k in range(len(entropies))]
        return sum(value <= gamma for value in sums)

    return number


QUOTAS: list[tuple[Rank, dict[str, Any], Callable[[list[float], list[Array]], int]]] = [
    ("top_prob", {"quota": "threshold", "tau": 0.7}, more_above(0.7)),
    ("entropy", {"quota": "threshold", "tau": -0.6}, more_above(-0.6)),
    ("margin", {"quota": "budget", "gamma": 0.5}, more_within(0.5)),
]


@pytest.mark.parametrize(("rank", "options", "more"), QUOTAS)
def test_distribution_of_quotas(
    rank: Rank, options: dict[str, Any], more: Callable[[list[float], list[Array]], int]
) -> None:
    """At least as many masks as are due, and no evaluation more than with these alone."""
    tables = random_tables(seed=3, least_gap=2.0)
    steps = steps_of(4, lambda t: t, lambda t: t)
    distribution = sampler_distribution(SMALL, tables, steps, longest=3, score=SCORES[rank], more=more)
    assert sum(distribution.values()) == pytest.approx(1, abs=1e-9)
    due = sampler_distribution(SMALL, tables, steps, longest=3, score=SCORES[rank])
    assert total_variation(distribution, due) > 0.01
    _assert_same_distribution(
        _draw(TableNetwork(SMALL, tables), 5000, num_steps=4, rank=rank, **options), distribution
    )
    evaluations: list[float] = []
    for given in ({}, options):
        predict = FlexMDMPredictor(
            interpolant=LINEAR,
            mask_id=MASK,
            pad_id=PAD,
            num_steps=16,
            suppressed_ids=SUPPRESSED,
            rank=rank,
            **given,
        )
        prediction = predict(TableNetwork(SMALL, tables), prompts(500, 3), torch.arange(500))
        evaluations.append(float(prediction.nfe.double().mean()))
    assert evaluations[1] < evaluations[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"quota": "threshold"},
            "rank must be top_prob, margin or entropy with quota=threshold",
        ),
        (
            {"rank": "left_to_right", "quota": "budget"},
            "or entropy with quota=budget",
        ),
        ({"rank": "top_prob", "tau": 0.5}, "left out with quota=hazard"),
        (
            {"rank": "top_prob", "quota": "threshold", "gamma": 0.5},
            "gamma=0.5 has no use with",
        ),
        ({"rank": "entropy", "quota": "threshold"}, "tau must be below 0, in nats, with rank=entropy"),
        ({"rank": "top_prob", "quota": "stable"}, "quota(.|\n)*'stable'"),
    ],
)
def test_quotas_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=message):
        FlexMDMPredictor(interpolant=LINEAR, mask_id=MASK, pad_id=PAD, **options)


def test_temperature_one_half_squares_the_distribution_of_a_token() -> None:
    tables = random_tables(seed=4)

    def sharper(time: float) -> Tables:
        squares = tables(time).distributions ** 2
        return Tables(tables(time).gaps, squares / squares.sum(-1, keepdims=True))

    distribution = sampler_distribution(SMALL, sharper, steps_of(4, lambda t: t, lambda t: t), longest=3)
    _assert_same_distribution(
        _draw(TableNetwork(SMALL, tables), 5000, num_steps=4, temperature=0.5), distribution
    )


def test_more_than_the_budget_is_never_missing() -> None:
    """g = 4 on either side of a given token and budget for 2 in all: a rate of 1 each, and a mean of 1/2."""
    tables = Tables(np.full((SMALL.size, 4), 4.0), np.full((SMALL.size, 3, 2), [0.0, 1.0]))
    rows = 4000
    given = prompts(rows, 2)
    given["input_ids"] = torch.tensor([[BOS, FIRST]]).repeat(rows, 1)
    given["attention_mask"] = given["open_slots"] = torch.ones(rows, 2, dtype=torch.bool)
    predict = FlexMDMPredictor(
        interpolant=LINEAR, mask_id=MASK, pad_id=PAD, num_steps=2, suppressed_ids=SUPPRESSED
    )
    prediction = predict(TableNetwork(SMALL, lambda _: tables), given, torch.arange(rows))
    found = [
        (text.index(FIRST), len(text) - 1 - text.index(FIRST))
        for text in read_texts(prediction.ids, prediction.lengths)
    ]
    none, one = math.exp(-1), math.exp(-1)
    two = (1 - none - one) / 4
    distribution: dict[Text, float] = {
        (0, 0): none,
        (1, 0): one / 2,
        (0, 1): one / 2,
        (2, 0): two,
        (1, 1): 2 * two,
        (0, 2): two,
    }
    _assert_same_distribution(dict(Counter(found)), distribution)


_UNMASKING: dict[tuple[Sampler, str], Callable[[float], float]] = {
    ("hazard_integrated", "linear"): lambda t: 0.2 / (1 - t),
    ("tau_leaping", "linear"): lambda t: 1 - math.exp(-0.2 / (1 - t)),
    ("hazard_integrated", "sine"): lambda t: 1 - math.cos(_HALF * (t + 0.2)) / math.cos(_HALF * t),
    ("tau_leaping", "sine"): lambda t: 1 - math.exp(-0.2 * _HALF * math.tan(_HALF * t)),
}
"""Chance of unmasking from t to t + 0.2, for beta = t and beta = 1 - cos(pi t / 2)."""


@pytest.mark.parametrize(("sampler", "schedule"), _UNMASKING)
def test_chance_of_unmasking_in_each_step(sampler: Sampler, schedule: str) -> None:
    """Each step writes a fraction of the masks that are left, within 4 deviations."""
    rows = 1400
    given = prompts(rows, 0)
    given["input_ids"] = torch.tensor([[BOS, MASK, MASK, MASK]]).repeat(rows, 1)
    given["attention_mask"] = torch.ones(rows, 4, dtype=torch.bool)
    given["open_slots"] = torch.zeros(rows, 4, dtype=torch.bool)
    predict = FlexMDMPredictor(
        interpolant=Interpolant(LogLinear(eps=0), LogLinear(eps=0) if schedule == "linear" else Sine()),
        mask_id=MASK,
        pad_id=PAD,
        num_steps=5,
        suppressed_ids=SUPPRESSED,
        sampler=sampler,
    )
    network = TableNetwork(SMALL, random_tables(seed=1))
    trace = predict(network, given, torch.arange(rows), trace=True).trace
    left = 3 * rows
    for step in range(1, 5):
        written = int(((trace.operation == 1) & (trace.step == step)).sum())
        chance = _UNMASKING[sampler, schedule](0.2 * (step - 1))
        assert written / left == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / left))
        left -= written


def test_posterior_generates_the_distribution_of_the_data_up_to_one_over_steps() -> None:
    """Values of an independent enumeration for all texts of up to two tokens, equally likely."""
    data = dict.fromkeys(texts(2, 2), 1 / 7)
    posterior = Posterior(data, 2)

    def tables(time: float) -> Tables:
        return posterior.tables(1 - time)

    distributions = {
        number: sampler_distribution(
            posterior.index, tables, steps_of(number, lambda t: t, lambda t: t), longest=4
        )
        for number in (16, 32, 64)
    }
    distances = [total_variation(data, distribution) for distribution in distributions.values()]
    np.testing.assert_allclose(distances, [0.111, 0.060, 0.031], atol=2e-3)
    found = _draw(TableNetwork(posterior.index, tables), 6000, num_steps=16, longest=4)
    likely = {text: mass for text, mass in distributions[16].items() if mass * 6000 > 5}
    rest = {(0,): sum(distributions[16].values()) - sum(likely.values())}
    counts = {text: number for text, number in found.items() if text in likely}
    _assert_same_distribution(counts | {(0,): 6000 - sum(counts.values())}, likely | rest)
