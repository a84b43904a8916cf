"""The likelihood of the sampler by replay, block by block, and log-probabilities of trajectories."""

import itertools
import math

import pytest
import torch

from xlm.modules.records import Targets

from .exact_bd3lm import FIRST, MASK, PAD, assert_drawn_from, block_by_block, prompt_batch
from .test_samplers_bd3lm import (
    LENGTH,
    NUM_TOKENS,
    START,
    collator,
    network,
    predictor,
    prompts,
    table,
    texts,
)


def test_an_order_that_the_text_decides_has_an_exact_likelihood() -> None:
    """Its texts have mass one, and the texts drawn have these probabilities."""
    model = table(length=3)
    predict = predictor("left_to_right", 2, cache=False)
    every = [
        text for size in range(4) for text in itertools.product(range(FIRST, FIRST + NUM_TOKENS), repeat=size)
    ]
    batch = prompt_batch((MASK,) * 3, len(every), may_end=True)
    ids = torch.tensor([[*text, *[PAD] * (3 - len(text))] for text in every])
    targets = Targets(ids, torch.tensor([len(text) for text in every]))
    found = predict.likelihood(model, batch, targets, torch.arange(len(every)))
    masses = found.nll.neg().exp()
    assert float(masses.sum()) == pytest.approx(1.0, abs=1e-12)
    drawn = texts(predict(model, prompt_batch((MASK,) * 3, 6000, may_end=True), torch.arange(6000)))
    assert_drawn_from(drawn, dict(zip(every, masses.tolist(), strict=True)))


def test_the_likelihood_with_a_random_order_estimates_that_of_the_model() -> None:
    model = table()
    distribution = block_by_block(model.prediction(2), LENGTH, 2)
    text = max(distribution, key=distribution.__getitem__)
    targets = Targets(torch.tensor([text] * 50), torch.full((50,), LENGTH))
    found = predictor("first_hitting", 2, cache=False).likelihood(
        model, prompt_batch(START, 50), targets, torch.arange(50), num_draws=40
    )
    weights = found.log_weights.exp().flatten()
    assert found.nll_kind == "bound"
    error = 4 * float(weights.std()) / math.sqrt(len(weights))
    assert float(weights.mean()) == pytest.approx(distribution[text], abs=error)


def test_the_likelihood_is_the_same_with_and_without_cache() -> None:
    model, examples = network(), prompts()
    batch, seeds = collator(3, 7)(examples), torch.arange(len(examples))
    ids = torch.full((len(examples), 5), FIRST)
    ids[4] += 1  # as its given tokens
    targets = Targets(ids, torch.tensor([5, 2, 0, 3, 5, 1]))
    found = [
        predictor("confidence", 3, cache=cache, temperature=0.8).likelihood(model, batch, targets, seeds)
        for cache in (True, False)
    ]
    torch.testing.assert_close(found[0].nll, found[1].nll, rtol=0, atol=1e-10)


def test_log_probs_of_a_trajectory_are_those_recorded_and_have_a_gradient() -> None:
    model, examples = network(), prompts()
    batch, seeds = collator(3, 7)(examples), torch.arange(len(examples))
    predict = predictor("confidence", 3)
    recorded = predict(model, batch, seeds, trace="full").trace
    assert torch.equal(recorded.entropy > 0, recorded.log_prob < 0)
    again = predict.trajectory_log_probs(model, batch, recorded, seeds)
    torch.testing.assert_close(again.log_prob.detach(), recorded.log_prob, rtol=0, atol=1e-10)
    again.log_prob.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
