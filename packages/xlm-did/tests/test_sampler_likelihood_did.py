"""The likelihood of the sampler: the mean weight of replays is the probability of each text.

The probabilities are those of the exact distribution in plain Python. The seeds are fixed, so no test can
fail by chance. (Quadratures over the times of a replay are in ``test_likelihood_did.py``.)
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from xlm.modules.records import SamplerLikelihood, Targets
from xlm_did import DIDExample, DIDPredictor, DIDPromptCollator

from .exact_did import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    Rates,
    RatesNetwork,
    Text,
    generated,
    generated_in_steps,
    random_network,
    rates_of,
    texts,
)
from .test_predictor_did import EVERY, LONGEST, MODEL, RATES, filtered

DRAWS = 400
NOTHING: DIDExample = {"seed": 0}


def score(
    every: list[Text],
    *,
    model: Any = MODEL,
    example: DIDExample = NOTHING,
    max_length: int = LONGEST,
    draws: int = 1,
    **options: Any,
) -> SamplerLikelihood:
    """Each text with ``DRAWS`` seeds of its own."""
    predictor = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    ids = torch.full((len(every), max(map(len, every))), PAD)
    for row, text in enumerate(every):
        ids[row, : len(text)] = torch.tensor(text)
    repeated = torch.arange(len(every)).repeat_interleave(DRAWS)
    targets = Targets(ids=ids[repeated], lengths=torch.tensor([len(text) for text in every])[repeated])
    prompts = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=max_length)
    batch = prompts([example] * len(repeated))
    return predictor.likelihood(model, batch, targets, torch.arange(len(repeated)), num_draws=draws)


def distribution_of(rates: Rates, num_steps: int | None = None, **_: object) -> dict[Text, float]:
    """What a sampler with these rates writes."""
    if num_steps is None:
        return generated(rates, EVERY)
    return generated_in_steps(rates, num_steps)


def assert_mean_weights(found: SamplerLikelihood, expected: list[float]) -> None:
    """The mean of the weights of each text is right within 4 standard errors."""
    weights = found.log_weights.exp().mean(0).view(len(expected), DRAWS)
    error = weights.std(1) / math.sqrt(DRAWS)
    difference = (weights.mean(1) - torch.tensor(expected, dtype=torch.float64)).abs()
    assert bool((difference <= 4 * error + 1e-7).all()), difference / error
    # The times vary little enough for the bound on the difference to say something.
    assert float(error.sum()) < 0.15


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, RATES),
        ({"sampling": "two_stage"}, RATES),
        ({"top_k": 3, "temperature": 2.0}, filtered(RATES, 3, 2.0)),
        ({"temperature": 0.4}, filtered(RATES, 100, 0.4)),
        ({"num_steps": 1}, RATES),
        ({"num_steps": 2}, RATES),
        ({"num_steps": 3, "top_k": 3}, filtered(RATES, 3, 1.0)),
    ],
)
def test_the_mean_weight_is_the_probability(options: dict[str, Any], rates: Rates) -> None:
    exact = distribution_of(rates, **options)
    found = score(EVERY, **options)
    assert_mean_weights(found, [exact.get(text, 0.0) for text in EVERY])
    assert (found.nll_kind, found.models_length) == ("bound", True)
    assert found.num_tokens.view(-1, DRAWS)[:, 0].tolist() == [len(text) for text in EVERY]
    assert bool(found.smallest_gap.isinf().all())


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, RATES),
        ({"sampling": "two_stage", "num_steps": 2}, RATES),
        ({"temperature": 0.4, "num_steps": 3}, filtered(RATES, 100, 0.4)),
    ],
)
def test_draws_that_the_sampler_guides_are_weighed_together_with_planned_ones(
    options: dict[str, Any], rates: Rates
) -> None:
    """With three draws the second one is guided; so its weight without the others would be at most 1."""
    exact = distribution_of(rates, **options)
    found = score(EVERY, draws=3, **options)
    assert_mean_weights(found, [exact.get(text, 0.0) for text in EVERY])
    assert float(found.log_weights.max()) <= math.log(3)


def test_times_that_uniform_ones_hardly_ever_have_are_found_by_guided_draws() -> None:
    """One token at a time is missing, never none: it appears at v u, v uniform. Below c it is 3, else 4.

    So (3, 3, 3) has the probability c of the first time; of three uniform times c^3 are all below.
    """
    c = 0.05
    late = Rates(
        numbers=lambda text: np.array([1e-12, 1.0] if len(text) < LONGEST else [1.0]),
        insert=lambda text, u: {
            (slot, token): ((u < c) == (token == 3)) / (len(text) + 1)
            for slot in range(len(text) + 1)
            for token in (3, 4)
        },
    )
    found = score([(3, 3, 3)], model=RatesNetwork(late, LONGEST, 2), draws=2)
    assert_mean_weights(found, [c])
    assert float(found.nll.exp().reciprocal().mean()) == pytest.approx(c, rel=0.3)


def test_given_tokens_are_conditions_and_their_places_are_drawn_if_there_are_several() -> None:
    """Given is 4 with slots on both sides, so that 4 can be any of several in the text."""
    example: DIDExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    every = [text for text in texts(2, 3) if 4 in text]
    found = score(every, example=example)
    weights = found.log_weights[0].exp().view(len(every), DRAWS)
    # All texts that hold the given token, and nothing else, can be written.
    assert float(weights.mean(1).sum()) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match="target 0 does not hold the given tokens of its row"):
        score([(3, 3)], example=example)


def test_texts_beyond_the_budget_or_of_other_tokens_are_impossible() -> None:
    assert bool(score([(3, 4, 3)], max_length=2).nll.isinf().all())
    assert bool(score([(3, PAD)]).nll.isinf().all())
    assert bool(score([(3, 4, 3)], max_length=2, num_steps=2).nll.isinf().all())


def test_more_draws_tighten_the_bound_and_never_pass_the_exact_value() -> None:
    every = [(3, 4, 4), (4, 3, 4)]
    distribution = generated(RATES, EVERY)
    exact = torch.tensor([-math.log(distribution[text]) for text in every], dtype=torch.float64)
    means = [score(every, draws=draws).nll.view(2, DRAWS).mean(1) for draws in (1, 2, 4)]
    for worse, better in ((means[0], means[1]), (means[1], means[2]), (means[2], exact)):
        assert bool((worse > better).all())


def test_a_network_whose_prompt_is_read_once_scores_the_same_way() -> None:
    model = random_network(2, 2, seed=5, prompt_sees_target=False)
    distribution = generated(rates_of(model, 2, 2, prompt=(4, 3, 3)), texts(2, 2))
    example: DIDExample = {"seed": 0, "prompt_ids": torch.tensor([4, 3, 3])}
    found = score(texts(2, 2), model=model, example=example, max_length=2)
    assert_mean_weights(found, list(distribution.values()))
