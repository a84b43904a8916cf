"""Traces with log-probabilities: those of all trajectories add up to the exact distribution of texts."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from xlm.modules.records import INSERT, WRITE, FullTrace
from xlm.modules.testing import replay, to_list
from xlm_editflow import EditFlowExample, EditFlowPredictor, EditFlowPromptCollator, Prompt

from .exact_editflow import BOS, FIRST, PAD, SPECIAL, Text, random_network, rates_of
from .exact_steps_editflow import generated_in_steps

LIMIT = 3
A, B = FIRST, FIRST + 1
MODEL = random_network(2, seed=11)


def full_trace(rows: int, source: Text, model: Any = MODEL, **options: Any) -> FullTrace:
    """Of rows that are edited from a source, with it as the condition if it is not empty."""
    example: EditFlowExample = {"seed": 0}
    if source:
        example = {"seed": 0, "prompt_ids": torch.tensor(source)}
    collate = EditFlowPromptCollator(
        pad_id=PAD, bos_id=BOS, max_length=LIMIT, source=Prompt() if source else None
    )
    batch, seeds = collate([example] * rows), torch.arange(rows)
    predict = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    written = predict(model, batch, seeds, trace="full")
    assert torch.equal(written.ids, predict(model, batch, seeds).ids)
    return written.trace


@pytest.mark.parametrize(
    ("source", "options"), [((), {}), ((), {"insertions": "poisson"}), ((B, A), {}), ((B,), {"num_steps": 2})]
)
def test_the_trajectories_to_a_text_have_its_probability(source: Text, options: dict[str, Any]) -> None:
    rows = 3_000
    trace = full_trace(rows, source, **{"num_steps": 1, **options})
    exact = generated_in_steps(
        rates_of(MODEL, 2, LIMIT, prompt=source),
        {source: 1.0},
        options.get("num_steps", 1),
        LIMIT,
        is_poisson="insertions" in options,
    )
    edits: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
    total = to_list(trace.place_log_prob)
    columns = (trace.step, trace.operation, trace.position, trace.token, trace.row, trace.log_prob)
    for *edit, row, log_prob in zip(*(to_list(column) for column in columns), strict=True):
        edits[row].append(tuple(edit))
        total[row] += log_prob
    first_row = {tuple(edits[row]): row for row in range(rows)}
    found: defaultdict[Text, float] = defaultdict(float)
    for row in first_row.values():
        found[tuple(replay(trace, row))] += math.exp(total[row])
    # Trajectories of small probability may not be among the rows.
    assert sum(found.values()) > 0.97
    for text, mass in found.items():
        assert mass <= exact[text] + 1e-6


def test_tokens_have_the_probabilities_that_they_are_drawn_with() -> None:
    """Given the kind of an edit and its position; deletions have none of their own."""
    trace = full_trace(500, (B, A), num_steps=1, temperature=0.5)
    later = trace.step > 0
    inserted, written = ((trace.operation == kind) & later for kind in (INSERT, WRITE))
    others = ~inserted & ~written
    assert trace.log_prob[others].abs().max() == trace.entropy[others].abs().max() == 0
    # Another token than the one before: of two there is one.
    assert trace.log_prob[written].abs().max() < 1e-9
    assert trace.entropy[written].abs().max() < 1e-9
    in_first = inserted & (trace.position == 0)
    pairs = zip(to_list(trace.token[in_first]), to_list(trace.log_prob[in_first]), strict=True)
    [first, second] = dict(pairs).values()
    assert math.exp(first) + math.exp(second) == pytest.approx(1.0, abs=1e-6)
    entropy = -first * math.exp(first) - second * math.exp(second)
    assert to_list(trace.entropy[in_first]) == pytest.approx([entropy] * int(in_first.sum()), abs=1e-6)


def test_the_times_of_first_hitting_are_densities() -> None:
    """Of rows with at most one insertion: the inverse density has the size of the space as its mean."""
    rows, last_time = 3_000, 0.01
    model = random_network(2, seed=11, only_insertions=True)
    options = {"num_steps": None, "num_points": 16, "last_time": last_time, "max_new_tokens": 1}
    trace = full_trace(rows, (), model, **options)
    inserted = torch.bincount(trace.row, minlength=rows)
    log_density = trace.place_log_prob.index_add(0, trace.row, trace.log_prob)
    nothing = log_density[inserted == 0].exp()
    assert nothing.std() < 1e-6
    assert inserted.double().mean().item() == pytest.approx(1 - nothing[0].item(), abs=0.04)
    inverse = (-log_density[inserted == 1]).exp()
    assert inverse.sum().item() / rows == pytest.approx(2 * (1 - last_time), abs=0.2)
