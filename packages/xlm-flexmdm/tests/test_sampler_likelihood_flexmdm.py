"""The likelihood of the sampler: the mean weight of labelled paths is the probability of each text.

The probabilities are sums over all histories, with what the budget drops. The seeds are fixed, so no test can
fail by chance.
"""

import math
from typing import Any

import pytest
import torch

from xlm.modules.records import SamplerLikelihood, Targets
from xlm_flexmdm import FlexMDMPredictor, FlexMDMPromptCollator, Interpolant, insertions, poisson
from xlm_flexmdm.interpolant_flexmdm import Sampler
from xlm_flexmdm.predictor_flexmdm import Rank
from xlm_flexmdm.replay_flexmdm import log_prob_of_insertions

from .exact_flexmdm import BOS, FIRST, MASK, PAD, TableNetwork, Text, texts
from .exact_sampler_flexmdm import sampler_distribution, steps_of
from .test_sampler_distribution_flexmdm import (
    FORMULAS,
    LINEAR,
    QUOTAS,
    SCORES,
    SMALL,
    SUPPRESSED,
    prompts,
    random_tables,
)

DRAWS = 1000


def score(
    network: TableNetwork,
    every: list[Text],
    *,
    num_steps: int,
    interpolant: Interpolant = LINEAR,
    longest: int = 3,
    **options: Any,
) -> SamplerLikelihood:
    """Each text with ``DRAWS`` seeds of its own."""
    predictor = FlexMDMPredictor(
        interpolant=interpolant,
        mask_id=MASK,
        pad_id=PAD,
        num_steps=num_steps,
        suppressed_ids=SUPPRESSED,
        **options,
    )
    ids = torch.full((len(every), max(map(len, every))), PAD)
    for row, text in enumerate(every):
        ids[row, : len(text)] = torch.tensor(text)
    repeated = torch.arange(len(every)).repeat_interleave(DRAWS)
    lengths = torch.tensor([len(text) for text in every])[repeated]
    seeds = torch.arange(len(repeated)) + 17
    return predictor.likelihood(
        network, prompts(len(repeated), longest), Targets(ids[repeated], lengths), seeds
    )


def assert_mean_weights(found: SamplerLikelihood, every: list[Text], expected: dict[Text, float]) -> None:
    """The mean weight of each text is right within 4 standard errors, exactly if all are equal."""
    weights = found.log_weights[0].exp().view(len(every), DRAWS)
    error = weights.std(1) / math.sqrt(DRAWS)
    exact = torch.tensor([expected.get(text, 0.0) for text in every], dtype=torch.float64)
    assert bool(((weights.mean(1) - exact).abs() <= 4 * error + 1e-11).all())
    assert float(error.sum()) < 0.09, "the weights say little"


@pytest.mark.parametrize("longest", [3, 2])
@pytest.mark.parametrize("sampler", ["hazard_integrated", "tau_leaping"])
@pytest.mark.parametrize("schedules", FORMULAS)
def test_the_mean_weight_is_the_probability(sampler: Sampler, schedules: str, longest: int) -> None:
    interpolant, alpha, beta, *hazards = FORMULAS[schedules]
    held = None if sampler == "hazard_integrated" else (hazards[0], hazards[1])
    tables, steps = random_tables(seed=2), steps_of(4, alpha, beta, held)
    expected = sampler_distribution(SMALL, tables, steps, longest=longest)
    every = texts(2, 3)
    network = TableNetwork(SMALL, tables)
    found = score(network, every, num_steps=4, interpolant=interpolant, sampler=sampler, longest=longest)
    assert_mean_weights(found, every, expected)
    assert (found.nll_kind, found.models_length, found.num_draws) == ("bound", True, 1)
    assert bool(found.smallest_gap.isinf().all())
    too_long = torch.tensor([len(text) > longest for text in every]).repeat_interleave(DRAWS)
    assert bool(found.nll[too_long].isinf().all())


@pytest.mark.parametrize("rank", SCORES)
def test_it_does_so_in_every_order_of_unmasking(rank: Rank) -> None:
    tables, steps = random_tables(seed=3), steps_of(4, lambda t: t, lambda t: t)
    expected = sampler_distribution(SMALL, tables, steps, longest=3, score=SCORES[rank])
    every = texts(2, 3)
    found = score(TableNetwork(SMALL, tables), every, num_steps=4, rank=rank)
    assert_mean_weights(found, every, expected)
    assert bool(found.smallest_gap.isinf().all()) == (rank == "left_to_right")


@pytest.mark.parametrize(("rank", "options", "more"), QUOTAS)
def test_it_does_so_with_every_quota(rank: Rank, options: dict[str, Any], more: Any) -> None:
    tables, steps = random_tables(seed=3), steps_of(4, lambda t: t, lambda t: t)
    expected = sampler_distribution(SMALL, tables, steps, longest=3, score=SCORES[rank], more=more)
    every = texts(2, 3)
    found = score(TableNetwork(SMALL, tables), every, num_steps=4, rank=rank, **options)
    assert_mean_weights(found, every, expected)
    assert bool(found.smallest_gap.isfinite().any())


def test_what_the_budget_drops_is_counted_exactly() -> None:
    """In two steps everything is inserted at once, so that no label is drawn and every weight is equal."""
    tables, steps = random_tables(seed=1, least_gap=1.0), steps_of(2, lambda t: t, lambda t: t)
    every = texts(2, 3)
    found = score(TableNetwork(SMALL, tables), every, num_steps=2)
    expected = sampler_distribution(SMALL, tables, steps, longest=3)
    weights = found.log_weights[0].exp().view(len(every), DRAWS)
    assert bool((weights == weights[:, :1]).all())
    assert weights[:, 0].tolist() == pytest.approx([expected[text] for text in every], rel=1e-9)


def test_a_target_without_the_given_tokens_is_refused() -> None:
    predictor = FlexMDMPredictor(
        interpolant=LINEAR, mask_id=MASK, pad_id=PAD, num_steps=2, suppressed_ids=SUPPRESSED
    )
    collate = FlexMDMPromptCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, max_length=3)
    given = torch.tensor([FIRST, FIRST + 1])
    batch = collate([{"seed": 0, "target_ids": given, "fixed": torch.tensor([False, True])}])
    network = TableNetwork(SMALL, random_tables(seed=1))
    with pytest.raises(ValueError, match="target 0 does not hold the given tokens of its row"):
        predictor.likelihood(
            network, batch, Targets(torch.tensor([[FIRST]]), torch.tensor([1])), torch.arange(1)
        )


@pytest.mark.parametrize("budget", [1, 2, 6])
def test_numbers_of_masks_have_the_probabilities_of_the_draw(budget: int) -> None:
    """With g = 1.2, 0 and 3, in sum above the budget (1, 2) and below it."""
    rows, factor = 20000, 0.5
    generator = torch.Generator().manual_seed(0)
    means = torch.full((rows,), factor * budget, dtype=torch.float64)
    level = torch.rand(rows, generator=generator, dtype=torch.float64)
    arrivals = poisson(means, level, torch.full((rows,), 70))
    uniforms = torch.rand(rows, int(arrivals.max()), generator=generator, dtype=torch.float64)
    gaps = torch.tensor([[1.2, 0.0, 3.0]], dtype=torch.float64)
    drawn = insertions(gaps.expand(rows, 3), arrivals, torch.full((rows,), budget), uniforms)

    every = torch.cartesian_prod(*[torch.arange(budget + 1)] * 3)
    every = every[every.sum(1) <= budget]
    number = len(every)
    factors = torch.full((number,), factor, dtype=torch.float64)
    probability = log_prob_of_insertions(
        every, gaps.expand(number, 3), torch.full((number,), budget), factors
    ).exp()
    assert float(probability.sum()) == pytest.approx(1, rel=1e-12)
    found = (drawn.unsqueeze(1) == every).all(2).double().mean(0)
    assert ((found - probability).abs() <= 4 * (probability * (1 - probability) / rows).sqrt()).all()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1e-6, 400 * math.log(4e-4) - math.lgamma(401) - 4e-4 + math.log1p(4e-4 / 401)), (5.0, 0.0)],
)
def test_a_full_row_of_a_small_or_large_mean(factor: float, expected: float) -> None:
    """A mean of 4e-4, with which the probability of 400 masks is below the smallest number, and of 2000."""
    budget, gaps = torch.tensor([400]), torch.tensor([[500.0]], dtype=torch.float64)
    factors = torch.tensor([factor], dtype=torch.float64)
    found = log_prob_of_insertions(budget.unsqueeze(1), gaps, budget, factors)
    assert float(found) == pytest.approx(expected, abs=1e-8)
