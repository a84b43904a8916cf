"""Traces with log-probabilities: those of all trajectories add up, as do the edits of one state."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules.records import FullTrace, Targets
from xlm_did import DID, DIDExample, DIDPredictor, DIDPromptBatch, DIDPromptCollator

from .exact_did import BOS, CLS, PAD, SPECIAL, random_network

ROWS = 3000
Place = tuple[int, int]
"""Position and token of an insertion."""


def prompts(rows: int) -> DIDPromptBatch:
    """A given token between two open slots, and at most two tokens more."""
    example: DIDExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    return DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)([example] * rows)


def predictor_of(options: dict[str, Any]) -> DIDPredictor:
    return DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)


def full_trace(*, reads_time: bool = True, **options: Any) -> FullTrace:
    batch, predict = prompts(ROWS), predictor_of(options)
    model, seeds = random_network(2, 3, seed=42, reads_time=reads_time), torch.arange(ROWS)
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


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "temperature": 0.7}])
def test_a_round_notes_its_number_and_single_draws(options: dict[str, Any]) -> None:
    """With one token at most, both are distributions that are known from all the rows."""
    trace = full_trace(insertions="one", max_new_tokens=1, reads_time=False, **options)
    first = trace.step == 1
    inserted = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, trace.row[first], True)
    of_number = trace.place_log_prob.exp().round(decimals=9)  # rows of a batch may differ by rounding
    [none] = set(of_number[~inserted].tolist())
    [one] = set(of_number[inserted].tolist())
    assert none + one == pytest.approx(1.0, abs=1e-6)
    assert float(inserted.double().mean()) == pytest.approx(one, abs=4 * math.sqrt(none * one / ROWS))
    columns = [column[first].tolist() for column in (trace.position, trace.token, trace.log_prob)]
    of_pair = {(position, token): math.exp(p) for position, token, p in zip(*columns, strict=True)}
    assert len(of_pair) > 2
    assert sum(of_pair.values()) == pytest.approx(1.0, abs=1e-5)


def test_rounds_have_no_likelihood() -> None:
    predict, model = predictor_of({"num_steps": 2, "insertions": "one"}), random_network(2, 3, seed=11)
    batch, seeds = prompts(1), torch.arange(1)
    trace = predict(model, batch, seeds, trace=True).trace
    with pytest.raises(ValueError, match="insertions must be 'any' for likelihoods"):
        predict.trajectory_log_probs(model, batch, trace, seeds)
    with pytest.raises(ValueError, match="insertions must be 'any' for likelihoods"):
        predict.likelihood(model, batch, Targets(torch.tensor([[4]]), torch.tensor([1])), seeds)


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": "two_stage", "temperature": 0.5},
        {"num_steps": 2, "top_k": 3},
    ],
)
def test_a_full_trace_is_scored_as_it_was_recorded(options: dict[str, Any]) -> None:
    model, batch, seeds = random_network(2, 3, seed=11), prompts(60), torch.arange(60)
    predict = predictor_of(options)
    trace = predict(model, batch, seeds, trace="full").trace
    with torch.no_grad():
        again = predict.trajectory_log_probs(model, batch, trace, seeds)
    assert torch.equal(again.log_prob, trace.log_prob)
    assert torch.equal(again.place_log_prob, trace.place_log_prob)
    for other, some_seeds in ((predict, seeds + 1), (predictor_of({"max_new_tokens": 1}), seeds)):
        with pytest.raises(ValueError, match="the trace is not one of this sampler"):
            other.trajectory_log_probs(model, batch, trace, some_seeds)


def chances(model: DID, text: list[int], u: float, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of the number of missing tokens, and of each slot and token, with gradient."""
    output = model(torch.tensor([[CLS, BOS, *text]]), time=torch.tensor([u], dtype=torch.float64))
    number, kept = torch.arange(4 - len(text)), len(text) - 1
    subsets = torch.tensor([math.comb(kept + n, n) for n in number.tolist()]).log()
    of_number = (output.length_logits[0, : len(number)] + subsets + number * math.log(u)).softmax(0)
    logits = output.token_logits[0, 1:, 3:]
    if options.get("sampling") == "two_stage":
        of_slot = logits.logsumexp(1).softmax(0)
        return of_number, of_slot.unsqueeze(1) * (logits / options["temperature"]).softmax(1)
    return of_number, logits.flatten().softmax(0).view_as(logits)


def log_probability(model: DID, edits: list[tuple[int, int, int]], options: dict[str, Any]) -> Tensor:
    """Of insertions (step, position, token) into the given text, one in each step or all in one."""
    text, total = [4], torch.zeros((), dtype=torch.float64)
    for part in range(options["num_steps"]):
        start, end = (1 - edge / options["num_steps"] for edge in (part, part + 1))
        of_number, of_pair = chances(model, text, start, options)
        now = [(position, token) for step, position, token in edits if step == part + 1]
        m, stays = len(now), end / start
        thinned = [math.comb(n, m) * (1 - stays) ** m * stays ** (n - m) for n in range(m, len(of_number))]
        total = total + (of_number[m:] * torch.tensor(thinned)).sum().log()
        slots: list[int] = []
        for position, token in now:
            [slot] = [k for k in range(len(of_pair)) if k + sum(other < k for other in slots) == position]
            slots.append(slot)
            total = total + of_pair[slot, token - 3].log()
        for position, token in now:
            text.insert(position, token)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 1},
        {"num_steps": 2, "sampling": "two_stage", "temperature": 0.5},
    ],
)
def test_the_gradient_is_that_of_the_probability_of_each_trajectory(options: dict[str, Any]) -> None:
    rows = 200
    model, batch, predict = random_network(2, 3, seed=11), prompts(rows), predictor_of(options)
    seeds = torch.arange(rows)
    trace = predict(model, batch, seeds, trace=True).trace
    edits: list[list[tuple[int, int, int]]] = [[] for _ in range(rows)]
    columns = torch.stack([trace.row, trace.step, trace.position, trace.token], 1)
    for row, step, position, token in columns[trace.step > 0].tolist():
        edits[row].append((step, position, token))
    # Of two steps the trace states the one that inserts only where both do.
    chosen = {
        tuple(of_row): row
        for row, of_row in enumerate(edits)
        if options["num_steps"] == 1 or len({step for step, _, _ in of_row}) == 2
    }
    assert len(chosen) > 4
    found = predict.trajectory_log_probs(model, batch, trace, seeds)
    log_p = found.place_log_prob.index_add(0, trace.row, found.log_prob)[list(chosen.values())]
    expected = torch.stack([log_probability(model, list(of_row), options) for of_row in chosen])
    torch.testing.assert_close(log_p, expected)
    rewards = torch.linspace(-1, 2, len(chosen), dtype=torch.float64)
    parameters = list(model.parameters())
    mine, theirs = (
        torch.autograd.grad((rewards * of_rows.exp()).sum(), parameters, allow_unused=True)
        for of_rows in (log_p, expected)
    )
    assert max(float(part.abs().max()) for part in theirs if part is not None) > 1e-3
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
