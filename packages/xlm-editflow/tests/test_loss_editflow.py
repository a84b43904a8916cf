"""The row terms against their formulas, what is refused, and the metrics."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm_editflow import (
    Corrupted,
    EditFlowCollator,
    EditFlowExample,
    EditFlowLoss,
    EditFlowLossMetrics,
    EditFlowOutput,
)

from .exact_editflow import (
    BLANK,
    BOS,
    FIRST,
    PAD,
    SPECIAL,
    RatesNetwork,
    batch_of,
    beta_density,
    between,
    oracle,
    pending_sets,
    random_network,
    rates_of,
)

A, B = FIRST, FIRST + 1
MODEL = random_network(2, seed=11)
RATES = rates_of(MODEL, 2, 9)
ALIGNMENT = ((A, BLANK, B, A), (A, B, A, BLANK))
LOSS = EditFlowLoss(suppressed_ids=SPECIAL)


def test_the_terms_of_a_row_are_those_of_the_formula() -> None:
    u = np.array([0.2, 0.7])
    for pending in pending_sets(ALIGNMENT):
        text, actions = between(ALIGNMENT, pending)
        found = RATES(text, u)
        total, r = sum(found.values()), len(actions)
        of_place = [
            sum(rate for (kind, at, _), rate in found.items() if (kind, at) == action[:2])
            for action in actions
        ]
        log_operations = sum((np.log(rate) for rate in of_place), np.zeros(2))
        log_tokens = sum((np.log(found[action]) for action in actions), np.zeros(2)) - log_operations
        operation = 4 / r * (total - r - log_operations) if r > 0 else total / u
        token = -4 / max(r, 1) * log_tokens
        batch = batch_of(ALIGNMENT, pending, u)
        with torch.no_grad():
            output, likelihood = LOSS(MODEL, batch), LOSS.likelihood(MODEL, batch)
        assert float(output.terms["token"]) == pytest.approx(token.sum(), abs=1e-10)
        assert float(output.terms["operation"]) == pytest.approx(operation.sum(), abs=1e-10)
        assert float(output.loss_sum) == pytest.approx((token + operation).sum(), abs=1e-10)
        assert likelihood.nll.tolist() == pytest.approx(token + operation, abs=1e-10)
        # In nats per text, independent of its length.
        assert int(output.loss_count) == 2
        assert (likelihood.nll_kind, likelihood.num_tokens.tolist()) == ("bound", [3, 3])


def test_the_loss_of_a_finished_row_is_finite_at_the_smallest_time() -> None:
    batch = batch_of(ALIGNMENT, (), np.array([1e-300]))
    loss = LOSS(MODEL, batch).loss_sum
    assert math.isfinite(float(loss.detach()))
    gradients = torch.autograd.grad(loss, [MODEL.operation_head.weight])
    assert bool(gradients[0].isfinite().all())


def test_a_row_that_is_given_whole_has_no_terms_and_no_gradient() -> None:
    collate = EditFlowCollator(pad_id=PAD, bos_id=BOS)
    batch = collate([{"seed": 0, "target_ids": torch.tensor([A, B]), "fixed": torch.tensor([True] * 2)}])
    output = LOSS(MODEL, batch)
    assert float(output.loss_sum.detach()) == 0.0
    gradients = torch.autograd.grad(output.loss_sum, list(MODEL.parameters()), materialize_grads=True)
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_impossible_targets_are_refused() -> None:
    collate = EditFlowCollator(pad_id=PAD, bos_id=BOS)
    examples: list[EditFlowExample] = [
        {"seed": seed, "target_ids": torch.tensor([A, B])} for seed in range(8)
    ]
    with pytest.raises(ValueError, match=f"token id {B}, which has probability 0"):
        EditFlowLoss(suppressed_ids=(*SPECIAL, B))(MODEL, collate(examples))


def test_a_source_drawn_from_the_target_has_no_likelihood() -> None:
    source = Corrupted(vocab_size=FIRST + 2, suppressed_ids=SPECIAL)
    collate = EditFlowCollator(pad_id=PAD, bos_id=BOS, source=source)
    batch = collate([{"seed": 0, "target_ids": torch.tensor([A, B])}])
    assert bool(LOSS(MODEL, batch).loss_sum.isfinite())
    with pytest.raises(ValueError, match="such as Corrupted, has no likelihood of the text"):
        LOSS.likelihood(MODEL, batch)


def test_metrics_are_means_over_rows() -> None:
    u = np.array([0.5])
    chosen = [(), (1,), (1, 2), (1, 2, 3)]
    outputs = [LOSS(MODEL, batch_of(ALIGNMENT, pending, u)) for pending in chosen]
    metrics = EditFlowLossMetrics()
    for output in outputs:
        metrics.update(output)
    rates = [RATES(between(ALIGNMENT, pending)[0], u) for pending in chosen]
    totals = [float(np.sum(list(found.values()))) for found in rates]
    assert metrics.compute() == pytest.approx(
        {
            "expected_at_finished": totals[0],
            "expected_at_unfinished": sum(totals[1:]) / 3,
            "mean_remaining": (0 + 1 + 2 + 3) / 4,
        }
    )
    metrics.reset()
    assert set(metrics.compute().values()) == {0.0}


def test_the_likelihood_is_the_mean_over_the_draws_of_an_example() -> None:
    collate = EditFlowCollator(pad_id=PAD, bos_id=BOS, num_draws=5)
    texts = torch.tensor([A, B, A])
    batch = collate([{"seed": seed, "target_ids": texts[:size]} for seed, size in ((1, 3), (2, 1))])
    with torch.no_grad():
        together = LOSS.likelihood(MODEL, batch)
        single = LOSS.likelihood(MODEL, {**batch, "num_draws": torch.tensor(1)})
    assert together.num_draws == 5
    assert together.num_tokens.tolist() == [3, 1]
    assert torch.allclose(together.nll, single.nll.view(2, 5).mean(1))
    assert not math.isclose(float(single.nll[0]), float(single.nll[1]))


class Tilted(nn.Module):
    """A network with a number added to the logit of token A, another one in each row."""

    def __init__(self, model: nn.Module, tilt: Tensor) -> None:
        super().__init__()
        self.model, self.tilt = model, tilt

    def forward(self, *args: Any, **named: Any) -> EditFlowOutput:
        output = self.model(*args, **named)
        cells = len(output.token_logits) // len(self.tilt)
        added = torch.zeros_like(output.token_logits)
        added[:, A] = self.tilt.repeat_interleave(cells)
        return output._replace(token_logits=output.token_logits + added)


def test_the_token_term_is_minimal_at_the_rates_of_the_data() -> None:
    """In each text at each time, over all edits that may remain: a weight that reads their number is not."""
    data = {(): 0.1, (A,): 0.2, (A, B): 0.3, (B, A): 0.15, (B, B): 0.25}
    alignments = [(mass, ((BLANK,) * len(text), text)) for text, mass in data.items()]
    model, u = RatesNetwork(oracle(alignments), 2), np.array([0.15, 0.5, 0.9])
    slopes: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for mass, alignment in alignments:
        for pending in pending_sets(alignment):
            edits, r = len(alignment[1]), len(pending)
            if r > 0:
                tilt = torch.zeros(len(u), dtype=torch.float64, requires_grad=True)
                term = LOSS(Tilted(model, tilt), batch_of(alignment, pending, u)).terms["token"]
                [slope] = torch.autograd.grad(term, tilt)
                density = beta_density(u, r, edits - r + 1) / math.comb(edits, r) / (edits + 1)
                slopes[between(alignment, pending)[0]].append(mass * torch.tensor(density) * slope)
    assert {text: len(found) for text, found in slopes.items()} == {(): 4, (A,): 2, (B,): 4}
    for found in slopes.values():
        assert float(torch.stack(found).sum(0).abs().max()) < 1e-12
    assert float(torch.stack(slopes[()]).abs().min()) > 1e-3
