"""Traces with log-probabilities: of slots by enumeration of the arrivals, and gradients of E[R]."""

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import LogLinear
from xlm_flexmdm import FlexMDMOutput, FlexMDMPredictor, Interpolant
from xlm_flexmdm.agenda_flexmdm import Arrivals

from .exact_flexmdm import FIRST, MASK, PAD, TableNetwork, Tables, read_texts, texts
from .exact_sampler_flexmdm import sampler_distribution, steps_of
from .test_sampler_distribution_flexmdm import SMALL, SUPPRESSED, prompts, random_tables

LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 1},
    {"rank": "margin"},
    {"rank": "top_prob", "quota": "threshold", "tau": 0.6},
]


def predictor_of(num_steps: int, **options: Any) -> FlexMDMPredictor:
    return FlexMDMPredictor(
        interpolant=LINEAR,
        mask_id=MASK,
        pad_id=PAD,
        num_steps=num_steps,
        suppressed_ids=SUPPRESSED,
        **options,
    )


@pytest.mark.parametrize("gaps", [(0.7, 0.0, 0.4), (2.5, 1.0, 0.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_slots_have_the_probabilities_of_all_sequences_of_arrivals(
    gaps: tuple[float, ...], budget: int
) -> None:
    """Each arrival into a slot, or nowhere, one after another until the budget is used up."""
    for number in range(6):
        rate = max(budget, sum(gaps))
        chances = [*(gap / rate for gap in gaps), 1 - sum(gaps) / rate]
        expected: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for sequence in itertools.product(range(4), repeat=number):
            counts = [0, 0, 0]
            for slot in sequence:
                if slot < 3 and sum(counts) < budget:
                    counts[slot] += 1
            expected[tuple(counts)] += math.prod(chances[slot] for slot in sequence)
        every = torch.tensor(list(expected))
        size = len(every)
        table = torch.tensor([gaps], dtype=torch.float64).expand(size, 3).clone().requires_grad_()
        ones = torch.ones(size, dtype=torch.int64)
        arrivals = Arrivals(table, budget * ones, ones.double(), ones.double(), ones, ones)
        vars(arrivals)["number"] = number * ones
        log_prob = arrivals.log_prob(every)
        assert log_prob.exp().tolist() == pytest.approx(list(expected.values()), abs=1e-12)
        possible = log_prob.isfinite()
        log_prob[possible].sum().backward()
        assert table.grad is not None
        assert bool(table.grad[possible].isfinite().all())


@pytest.mark.parametrize("options", SAMPLERS)
def test_a_full_trace_is_scored_as_it_was_recorded(options: dict[str, Any]) -> None:
    network = TableNetwork(SMALL, random_tables(seed=2, least_gap=1.0))
    predict, seeds, batch = predictor_of(6, **options), torch.arange(80), prompts(80, 3)
    plain, written = predict(network, batch, seeds, trace=True), predict(network, batch, seeds, trace="full")
    trace = written.trace
    for name in ("step", "row", "operation", "position", "token"):
        assert torch.equal(getattr(plain.trace, name), getattr(trace, name))
    assert torch.equal(plain.ids, written.ids)
    assert bool((trace.log_prob[trace.operation == 0] == 0).all())
    greedy = options.get("top_k") == 1
    assert bool((trace.log_prob[trace.operation == 1] == 0).all()) == greedy
    assert bool((trace.place_log_prob < 0).any())
    assert torch.equal(trace.entropy > 0, trace.log_prob < 0)
    again = predict.trajectory_log_probs(network, batch, trace, seeds)
    assert torch.equal(again.log_prob, trace.log_prob)
    assert torch.equal(again.place_log_prob, trace.place_log_prob)
    with pytest.raises(ValueError, match="the trace is not one of this sampler with these seeds"):
        predict.trajectory_log_probs(network, batch, trace, seeds + 1)
    with pytest.raises(ValueError, match="the trace is not one of this sampler with these seeds"):
        predictor_of(5, **options).trajectory_log_probs(network, batch, trace, seeds)


class Moved(nn.Module):
    """The network with two numbers: one multiplies g, the other is added to logits of the first token."""

    def __init__(self, network: TableNetwork, numbers: Tensor) -> None:
        super().__init__()
        self.network, self.numbers = network, nn.Parameter(numbers)

    def forward(self, *arguments: Tensor, **keywords: Tensor) -> FlexMDMOutput:
        output = self.network(*arguments, **keywords)
        first = torch.zeros_like(output.token_logits)
        first[:, FIRST] = 1.0
        logits = output.token_logits + self.numbers[1] * first
        return FlexMDMOutput(logits, output.expected_gaps * self.numbers[0], None)


def test_the_gradient_of_trajectories_is_that_of_the_expected_reward() -> None:
    """Within 4 standard errors of groups of rows; and E grad log p is 0. Some rows use up their budget."""
    tables = random_tables(seed=5)
    network = TableNetwork(SMALL, tables)
    every = texts(2, 2)
    rewards = dict(zip(every, torch.linspace(-1, 2, len(every)).tolist(), strict=True))

    def expected_reward(scale: float, shift: float) -> float:
        def moved(time: float) -> Tables:
            weights = tables(time).distributions * np.exp([shift, 0.0])
            return Tables(scale * tables(time).gaps, weights / weights.sum(-1, keepdims=True))

        distribution = sampler_distribution(SMALL, moved, steps_of(3, lambda t: t, lambda t: t), longest=2)
        return sum(mass * rewards[text] for text, mass in distribution.items())

    def slope(above: tuple[float, float], below: tuple[float, float]) -> float:
        return (expected_reward(*above) - expected_reward(*below)) / 2e-5

    expected = [slope((1.3 + 1e-5, 0.2), (1.3 - 1e-5, 0.2)), slope((1.3, 0.2 + 1e-5), (1.3, 0.2 - 1e-5))]
    model = Moved(network, torch.tensor([1.3, 0.2], dtype=torch.float64))
    predict, rows, groups = predictor_of(3), 1000, 30
    found: list[Tensor] = []
    nothing: list[Tensor] = []
    for group in range(groups):
        seeds, batch = torch.arange(rows) + group * rows, prompts(rows, 2)
        written = predict(model, batch, seeds, trace=True)
        scored = predict.trajectory_log_probs(model, batch, written.trace, seeds)
        log_p = scored.place_log_prob.index_add(0, written.trace.row, scored.log_prob)
        reward = torch.tensor(
            [rewards[text] for text in read_texts(written.ids, written.lengths)], dtype=torch.float64
        )
        found += torch.autograd.grad((reward * log_p).mean(), model.numbers, retain_graph=True)
        nothing += torch.autograd.grad(log_p.mean(), model.numbers)
    for gradients, values in ((found, expected), (nothing, [0.0, 0.0])):
        table = torch.stack(gradients)
        error = table.std(0) / math.sqrt(groups)
        assert bool(((table.mean(0) - torch.tensor(values)).abs() < 4 * error).all())
        assert float(error.amax()) < 0.04 * min(map(abs, expected)), "the groups say little"
