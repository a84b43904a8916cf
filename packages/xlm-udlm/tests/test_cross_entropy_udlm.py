"""The cross entropy of the denoiser, computed from the leave-one-out prediction."""

import math
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from xlm.modules import LogLinear, linear_cell_loss
from xlm_udlm import UDLMBatch, UDLMCollator, UDLMExample, UDLMLikelihoodCollator, UDLMLoss
from xlm_udlm.cross_entropy_udlm import DenoiserCrossEntropy
from xlm_udlm.posterior_udlm import own_token_bonus
from xlm_udlm.vocabulary_udlm import CellVocabulary

from .exact_udlm import denoiser, leave_one_out, random_data
from .networks_udlm import BOS, FIRST, PAD, AsNetwork

K, LENGTH = 3, 2
DATA = random_data(LENGTH, K, seed=3)
IDS: dict[str, Any] = {"vocab_size": FIRST + K, "pad_id": PAD, "eos_id": None, "suppressed_ids": [BOS]}
EXAMPLES: list[UDLMExample] = [
    {"seed": seed, "target_ids": FIRST + torch.tensor([seed % K, seed // K % K])} for seed in range(60)
]


def batch_of(kind: type[UDLMCollator] | type[UDLMLikelihoodCollator]) -> UDLMBatch:
    return kind(schedule=LogLinear(eps=0.0), bos_id=BOS, **IDS)(EXAMPLES)


@pytest.mark.parametrize("output", ["leave_one_out", "denoiser"])
def test_at_the_exact_prediction_it_is_that_of_the_exact_denoiser(output: Any) -> None:
    """-log d(x) by enumeration, whichever of the two the network gives; metrics are those of m."""
    batch = batch_of(UDLMCollator)
    of_others, of_all = leave_one_out(DATA), denoiser(DATA)
    model = AsNetwork(of_others if output == "leave_one_out" else of_all, K)
    loss = UDLMLoss(**IDS, output=output, objective="cross_entropy")
    found = loss(model, batch)
    expected, entropy, correct = 0.0, 0.0, 0
    for row in range(len(EXAMPLES)):
        state = tuple((batch["input_ids"][row, 1:] - FIRST).tolist())
        alpha = math.exp(-float(batch["noise"][row]))
        d, m = of_all(state, alpha), of_others(state, alpha)
        for cell, token in enumerate((batch["target_ids"][row, 1:] - FIRST).tolist()):
            expected -= math.log(d[cell, token])
            entropy -= math.log(m[cell, token])
            correct += int(m[cell].argmax() == token)
    assert float(found.loss_sum) == pytest.approx(expected, rel=1e-9)
    assert float(found.entropy_by_level.sum()) == pytest.approx(entropy, rel=1e-9)
    assert int(found.num_correct) == correct
    assert int(found.loss_count) == LENGTH * len(EXAMPLES)


@pytest.mark.parametrize("is_denoiser", [False, True])
@pytest.mark.parametrize("u", [2.0**-60, 0.3, 1.0])
def test_gradients_are_those_of_the_definition(u: float, is_denoiser: bool) -> None:
    """Impossible tokens have none, and none is infinite where nothing or everything is noise."""
    logits = torch.randn(4, FIRST + K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = logits.requires_grad_()
    own, target = FIRST + torch.tensor([0, 1, 2, 0]), FIRST + torch.tensor([0, 2, 1, 1])
    noise = torch.full((4,), u, dtype=torch.float64)
    bonus = own_token_bonus(noise, torch.full((4,), K))
    scored = DenoiserCrossEntropy(
        CellVocabulary(**IDS),
        own=own,
        target=target,
        may_end=torch.zeros(4, dtype=torch.bool),
        own_bonus=bonus,
        is_denoiser=is_denoiser,
    )
    (found,) = torch.autograd.grad(linear_cell_loss(leaf, nn.Identity(), scored).loss, leaf)
    d = leaf[:, FIRST:]
    if not is_denoiser:
        weights = (1 - u) * nn.functional.one_hot(own - FIRST, K).double() + u / K
        d = d + weights.log()
    expected_loss = nn.functional.cross_entropy(d, target - FIRST, reduction="sum")
    (expected,) = torch.autograd.grad(expected_loss, leaf)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (found[:, :FIRST] == 0).all()
    assert found.isfinite().all()


def test_the_likelihood_stays_the_bound() -> None:
    model, batch = AsNetwork(leave_one_out(DATA), K), batch_of(UDLMLikelihoodCollator)
    found: list[Tensor] = [
        UDLMLoss(**IDS, objective=objective).likelihood(model, batch).nll
        for objective in ("bound", "cross_entropy")
    ]
    assert torch.equal(*found)


def test_other_objectives_are_refused() -> None:
    objective: Any = "entropy"
    with pytest.raises((ValueError, TypeCheckError), match="objective"):
        UDLMLoss(**IDS, objective=objective)
