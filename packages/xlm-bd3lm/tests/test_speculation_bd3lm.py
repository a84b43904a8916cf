"""Speculation inside a block, whose past is repeated for the drafts of a row."""

import pytest
import torch

from xlm.modules.samplers import compose

from .test_samplers_bd3lm import collator, network, predictor, prompts


@pytest.mark.parametrize("cache", [True, False])
def test_the_texts_are_those_without(cache: bool) -> None:
    model, examples = network(), prompts() * 5
    batch, seeds = collator(4, 9)(examples), torch.arange(len(examples)) + 3
    plain, fast = (
        predictor(compose("first_hitting", speculate=most), 4, cache=cache)(model, batch, seeds, trace=True)
        for most in (None, 4)
    )
    assert torch.equal(fast.ids, plain.ids)
    assert torch.equal(fast.nfe, plain.nfe)
    assert fast.trace is not None
    assert plain.trace is not None
    assert torch.equal(fast.trace.token, plain.trace.token)
    assert fast.calls is not None
    assert float(fast.calls.sum()) < 0.9 * float(plain.nfe.sum())
