"""Ancestral sampling in N steps: one draw of its likelihood has the discrete bound as its expectation."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from xlm.modules import NoiseSchedule
from xlm.modules.samplers import Events, Plan, Sampler

from .exact_samplers import MASK, Rule, TableNetwork
from .test_replay import generation_of, score


@dataclass(frozen=True)
class _WithSteps(Sampler):
    """Writes the cells of every row in given steps."""

    steps: tuple[int, ...] = ()

    def plan(self, masked: Tensor, seeds: Tensor, schedule: NoiseSchedule) -> Plan:
        row, column = masked.nonzero(as_tuple=True)
        step = torch.tensor(self.steps)[column]
        return Plan(len(masked), Events(row, column, step), torch.ones(len(row), dtype=torch.float64))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_one_draw_of_ancestral_sampling_is_its_discrete_bound(num_steps: int) -> None:
    """E nll_1 over all plans is the sum over steps from t to s of (alpha_s - alpha_t) / (1 - alpha_t) E CE.

    With alpha(t) = 1 - t each cell is written in each step with probability 1 / N.
    """
    network, text = TableNetwork(), (3, 2, 4)
    generation = generation_of(Rule("random", "hazard", "none", {"num_steps": num_steps}), network)
    found = 0.0
    for steps in itertools.product(range(1, num_steps + 1), repeat=3):
        sampler = _WithSteps(**vars(generation.sampler), steps=steps)
        found += float(score(replace(generation, sampler=sampler), [text]).nll) / num_steps**3
    predict, bound = network.prediction(), 0.0
    for step in range(num_steps):
        time = 1 - step / num_steps
        for is_masked in itertools.product((False, True), repeat=3):
            cells = tuple(MASK if masked else token for masked, token in zip(is_masked, text, strict=True))
            loss = sum(
                -math.log(predict(cells, place)[text[place]]) for place in range(3) if is_masked[place]
            )
            chance = time ** sum(is_masked) * (1 - time) ** (3 - sum(is_masked))
            bound += 1 / num_steps / time * chance * loss
    assert found == pytest.approx(bound, rel=1e-12)
