"""The bound: above -log p of every text, p from matrix exponentials, tight for the rates of the data.

Expectations over edits that remain are sums over all of them, and over times quadratures (arXiv:2506.09018;
the split over their number is derived in the README).
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from xlm_editflow import EditFlowLoss
from xlm_editflow.rates_editflow import Rates as PackageRates

from .exact_editflow import (
    BLANK,
    BOS,
    FIRST,
    SPECIAL,
    Alignment,
    Array,
    RatesNetwork,
    Text,
    batch_of,
    beta_density,
    between,
    generated,
    generators,
    nodes,
    num_edits,
    oracle,
    pending_sets,
    random_network,
    rates_of,
    texts,
)

LONGEST = 3
EVERY = texts(2, LONGEST)
A, B = FIRST, FIRST + 1


def inserts(text: Text) -> Alignment:
    return (BLANK,) * len(text), text


def left(source: Text, target: Text) -> Alignment:
    width = max(len(source), len(target))
    pad = (BLANK,) * width
    return (*source, *pad)[:width], (*target, *pad)[:width]


def row_losses(
    model: nn.Module, alignment: Alignment, pending: tuple[int, ...], u: Array, prompt: Text = ()
) -> Array:
    with torch.no_grad():
        batch = batch_of(alignment, pending, u, prompt)
        return EditFlowLoss(suppressed_ids=SPECIAL).likelihood(model, batch).nll.numpy()


def expected_nll(model: nn.Module, alignment: Alignment, prompt: Text = ()) -> float:
    """E of the row loss over r, its time and its subset, as the collator draws them."""
    u, weight = nodes(24, power=4)
    total, edits = 0.0, num_edits(alignment)
    for pending in pending_sets(alignment):
        r = len(pending)
        density = beta_density(u, r, edits - r + 1) if r > 0 else beta_density(u, 1, edits + 1)
        losses = row_losses(model, alignment, pending, u, prompt)
        total += float((weight * density * losses).sum()) / math.comb(edits, r) / (edits + 1)
    return total


def integrated(model: nn.Module, alignment: Alignment) -> float:
    """integral du / u E_x [sum of s - r - sum of log s], with rates of the test's own."""
    u, weight = nodes(60, power=6)
    rates, total = rates_of(model, 2, 9), 0.0
    for pending in pending_sets(alignment):
        text, actions = between(alignment, pending)
        found = rates(text, u)
        chance = u ** len(pending) * (1 - u) ** (num_edits(alignment) - len(pending))
        term = sum(found.values()) - len(actions) - sum(np.log(found[action]) for action in actions)
        total += float((weight * chance / u * term).sum())
    return total


@pytest.mark.parametrize(
    "alignment",
    [
        inserts((A, B)),
        left((A, B), (B,)),
        ((A, BLANK, B, BLANK), (A, B, A, A)),
        ((A, BLANK), (BLANK, A)),
    ],
)
def test_the_split_over_the_number_of_edits_is_the_integral(alignment: Alignment) -> None:
    """Insertions, deletions, substitutions and equal tokens; a weight of the wrong r or D would show."""
    model = random_network(2, seed=3)
    assert expected_nll(model, alignment) == pytest.approx(integrated(model, alignment), abs=1e-7)


def test_totals_are_the_sums_over_all_edits_so_that_rows_of_the_generator_add_up_to_0() -> None:
    """A token is not substituted by itself, and there is no rate in closed slots."""
    model, u = random_network(2, seed=3), np.array([0.9, 0.2])
    rates = rates_of(model, 2, 9)
    for text in EVERY:
        ids = torch.tensor([[BOS, *text]] * 2)
        nothing = torch.arange(0)
        with torch.no_grad():
            logits = model(
                ids, time=torch.tensor(u), insert_at=nothing, substitute_at=nothing
            ).operation_logits
        found = PackageRates.of(logits, torch.tensor(u).log())
        is_open, editable = torch.ones_like(ids, dtype=torch.bool), ids != BOS
        assert found.total(is_open, editable).tolist() == pytest.approx(
            sum(rates(text, u).values()), abs=1e-12
        )
        # A token has one pending edit at most.
        assert bool((found.edited() <= 1).all())
    assert np.abs(generators(rates_of(model, 2, LONGEST), EVERY, u).sum(2)).max() < 1e-14


def test_rates_vanish_like_the_time() -> None:
    """However small it is: the loss of a finished row, sum of s / u, has a limit."""
    logits = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)
    everything = torch.ones(1, 1, dtype=torch.bool)
    limit = math.exp(1.0) + math.exp(-2.0) + math.exp(0.5)
    for log_time in (-20.0, -300.0, -700.0):
        found = PackageRates.of(logits, torch.tensor([log_time], dtype=torch.float64))
        total = float(found.total(everything, everything).log()) - log_time
        assert total == pytest.approx(math.log(limit), abs=1e-7)
        assert float(found.log_insert) - log_time == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(("prompt", "sees_target"), [((), True), ((3, 2), False)])
def test_expected_nll_bounds_every_text_from_nothing(prompt: Text, sees_target: bool) -> None:
    model = random_network(2, seed=5, prompt_sees_target=sees_target)
    exact = generated(rates_of(model, 2, LONGEST, prompt), EVERY, {(): 1.0})
    assert sum(exact.values()) == pytest.approx(1, abs=1e-9)
    for text in EVERY:
        bound = expected_nll(model, inserts(text), prompt)
        assert bound >= -math.log(exact[text]) - 1e-6, f"{text}: {bound} is below -log p"


@pytest.mark.parametrize("source", [(), (A,), (B, A)])
def test_expected_nll_bounds_every_text_from_a_source(source: Text) -> None:
    model = random_network(2, seed=6)
    exact = generated(rates_of(model, 2, LONGEST), EVERY, {source: 1.0})
    for target in [(), (A,), (B,), (B, B), (A, B), (A, B, A)]:
        bound = expected_nll(model, left(source, target))
        assert bound >= -math.log(exact[target]) - 1e-6, f"{target}: {bound} is below -log p"


def test_the_bound_averages_over_an_independent_source() -> None:
    model, sources = random_network(2, seed=6), {(): 0.5, (A,): 0.3, (B,): 0.2}
    exact = generated(rates_of(model, 2, LONGEST), EVERY, sources)
    for target in [(), (B,), (A, B)]:
        bound = sum(mass * expected_nll(model, left(source, target)) for source, mass in sources.items())
        assert bound >= -math.log(exact[target]) - 1e-6


def test_without_detours_the_bound_is_exact_where_there_is_one_path() -> None:
    model = random_network(2, seed=5, only_insertions=True)
    exact = generated(rates_of(model, 2, LONGEST), EVERY, {(): 1.0})
    assert expected_nll(model, inserts(())) == pytest.approx(-math.log(exact[()]), abs=1e-6)
    gaps = [expected_nll(model, inserts(text)) + math.log(exact[text]) for text in EVERY]
    assert min(gaps) >= -1e-6
    assert max(gaps) > 0.05  # and is not trivially the value itself elsewhere


def test_the_bound_of_the_rates_of_the_data_is_the_entropy() -> None:
    data = {(): 0.1, (A,): 0.2, (A, B): 0.3, (B, A): 0.15, (B, B): 0.25}
    model = RatesNetwork(oracle([(mass, inserts(text)) for text, mass in data.items()]), 2)
    entropy = -sum(mass * math.log(mass) for mass in data.values())
    expected = sum(mass * expected_nll(model, inserts(text)) for text, mass in data.items())
    assert expected == pytest.approx(entropy, abs=1e-6)


def test_the_labelled_form_of_equal_edits_is_exact() -> None:
    """A point mass at two equal tokens has 0 nats; with c log c for equal edits it would have 0.693."""
    model = RatesNetwork(oracle([(1.0, inserts((A, A)))]), 2)
    assert expected_nll(model, inserts((A, A))) == pytest.approx(0.0, abs=1e-7)
