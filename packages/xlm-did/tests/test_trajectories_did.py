"""Traces with log-probabilities: those of all trajectories add up, as do the edits of one state."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from xlm.modules.records import FullTrace
from xlm_did import DIDExample, DIDPredictor, DIDPromptCollator

from .exact_did import BOS, CLS, PAD, SPECIAL, random_network

ROWS = 3000
Place = tuple[int, int]
"""Position and token of an insertion."""


def full_trace(**options: Any) -> FullTrace:
    """Of rows with a given token between two open slots, and at most two tokens more."""
    example: DIDExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    batch = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)([example] * ROWS)
    predict = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    model, seeds = random_network(2, 3, seed=11), torch.arange(ROWS)
    written = predict(model, batch, seeds, trace="full")
    assert torch.equal(written.ids, predict(model, batch, seeds).ids)
    return written.trace


@pytest.mark.parametrize(
    "options", [{}, {"sampling": "two_stage", "temperature": 0.5}, {"top_k": 3, "temperature": 0.7}]
)
def test_the_trajectories_of_a_step_have_all_the_probability(options: dict[str, Any]) -> None:
    trace = full_trace(num_steps=1, **options)
    edits: defaultdict[int, list[Place]] = defaultdict(list)
    total = trace.place_log_prob.tolist()
    of_first: dict[Place, float] = {}
    entropies: set[float] = set()
    columns = (trace.step, trace.row, trace.position, trace.token, trace.log_prob, trace.entropy)
    for step, row, position, token, log_prob, entropy in zip(*(c.tolist() for c in columns), strict=True):
        if step == 0:
            assert (log_prob, entropy) == (0.0, 0.0)
            continue
        if not edits[row]:
            of_first[position, token] = log_prob
        edits[row].append((position, token))
        total[row] += log_prob
        entropies.add(round(entropy, 6))
    mass = {tuple(edits[row]): math.exp(total[row]) for row in range(ROWS)}
    assert {len(trajectory) for trajectory in mass} == {0, 1, 2}
    # Trajectories of small probability may not be among the rows.
    assert 1 - 10 / ROWS < sum(mass.values()) < 1 + 1e-5
    assert sum(map(math.exp, of_first.values())) == pytest.approx(1.0, abs=1e-5)
    [entropy] = entropies
    assert entropy == pytest.approx(-sum(math.exp(p) * p for p in of_first.values()), abs=1e-5)


def test_the_jumps_of_a_first_hitting_row_are_densities() -> None:
    """The times of a row with one token more: their density times the chance to stop integrates to 1."""
    trace = full_trace(max_new_tokens=1)
    inserted = torch.bincount(trace.row[trace.step > 0], minlength=ROWS)
    stopped = trace.place_log_prob[inserted == 0].exp()
    # E[1 / density] over the times is the length of (0, 1), in rows that do not stop; these are 1 - P(stop).
    inverse = (-trace.place_log_prob[inserted == 1]).exp()
    assert stopped.std() < 1e-6
    assert inserted.double().mean().item() == pytest.approx(1 - stopped[0].item(), abs=0.04)
    assert inverse.sum().item() / ROWS == pytest.approx(1.0, abs=0.1)
