"""The row terms against their formulas, what is refused, and the metrics."""

import math

import numpy as np
import pytest
import torch

from xlm_did import DIDCollator, DIDExample, DIDLoss, DIDLossMetrics

from .exact_did import SPECIAL, batch_of, deleted_pairs, kept_sets, random_network, rates_of, rest_of

LONGEST = 4
MODEL = random_network(2, LONGEST, seed=11)
RATES = rates_of(MODEL, 2, LONGEST)
TEXT = (3, 4, 4)


def test_the_terms_of_a_row_are_those_of_the_formula() -> None:
    u = np.array([0.2, 0.7])
    for n in range(4):
        for kept in kept_sets(TEXT, n):
            rest = rest_of(TEXT, kept)
            nhat = RATES.expected(rest, u)
            token, length = np.zeros(2), nhat / u
            if n > 0:
                table = RATES.insert(rest, u)
                token = -4 / n * np.sum([np.log(table[pair]) for pair in deleted_pairs(TEXT, kept)], axis=0)
                length = 4 / n * (nhat - n * np.log(nhat) - n)
            batch = batch_of(TEXT, kept, u, LONGEST)
            with torch.no_grad():
                output = DIDLoss(suppressed_ids=SPECIAL)(MODEL, batch)
                likelihood = DIDLoss(suppressed_ids=SPECIAL).likelihood(MODEL, batch)
            assert float(output.terms["token"]) == pytest.approx(token.sum(), abs=1e-10)
            assert float(output.terms["length"]) == pytest.approx(length.sum(), abs=1e-10)
            assert float(output.loss_sum) == pytest.approx((token + length).sum(), abs=1e-10)
            assert likelihood.nll.tolist() == pytest.approx(token + length, abs=1e-10)
            assert int(output.loss_count) == 2
            assert (likelihood.nll_kind, likelihood.num_tokens.tolist()) == ("bound", [3, 3])


def test_the_loss_of_a_complete_row_is_finite_at_the_smallest_time() -> None:
    """nhat vanishes like u: nhat / u tends to A_1 / A_0."""
    batch = batch_of(TEXT, (0, 1, 2), np.array([1e-300]), LONGEST)
    loss = DIDLoss(suppressed_ids=SPECIAL)(MODEL, batch).loss_sum
    numbers = RATES.numbers(TEXT)
    assert float(loss.detach()) == pytest.approx(numbers[1] / numbers[0], rel=1e-9)
    gradients = torch.autograd.grad(loss, [MODEL.length_head.classifier.weight])
    assert bool(gradients[0].isfinite().all())


def test_a_row_that_cannot_grow_has_no_terms_and_no_gradient() -> None:
    """Its target is given whole, or has the length of the limit."""
    collate = DIDCollator(pad_id=0, cls_id=1, bos_id=2, max_length=3)
    given = collate([{"seed": 0, "target_ids": torch.tensor(TEXT), "fixed": torch.tensor([True] * 3)}])
    full = batch_of(TEXT, (0, 1, 2), np.array([0.3]), longest=3)
    for batch in (given, full):
        output = DIDLoss(suppressed_ids=SPECIAL)(MODEL, batch)
        assert float(output.loss_sum.detach()) == 0.0
        assert (int(output.num_complete), int(output.num_incomplete)) == (0, 0)
        gradients = torch.autograd.grad(output.loss_sum, list(MODEL.parameters()), materialize_grads=True)
        assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_impossible_targets_are_refused() -> None:
    collate = DIDCollator(pad_id=0, cls_id=1, bos_id=2)
    loss = DIDLoss(suppressed_ids=(*SPECIAL, 4))
    examples: list[DIDExample] = [{"seed": seed, "target_ids": torch.tensor(TEXT)} for seed in range(8)]
    with pytest.raises(ValueError, match="token id 4, which has probability 0"):
        loss(MODEL, collate(examples))
    long = collate([{"seed": seed, "target_ids": torch.tensor([3] * 9)} for seed in range(8)])
    with pytest.raises(ValueError, match=r"a row misses [5-9] tokens, the length head has 0\.\.4"):
        DIDLoss(suppressed_ids=SPECIAL)(MODEL, long)


def test_metrics_are_means_over_rows() -> None:
    batches = [batch_of(TEXT, kept, np.array([0.5]), LONGEST) for kept in ((0, 1, 2), (0, 1), (1,), ())]
    metrics = DIDLossMetrics()
    sums = [DIDLoss(suppressed_ids=SPECIAL)(MODEL, batch) for batch in batches]
    for output in sums:
        metrics.update(output)
    found = metrics.compute()
    u = np.array([0.5])
    chances = [float((RATES.numbers(rest)[0] / RATES.total(rest, u))[0]) for rest in (TEXT, (3, 4), (4,), ())]
    assert found == pytest.approx(
        {
            "complete_at_complete": chances[0],
            "complete_at_incomplete": sum(chances[1:]) / 3,
            "mean_dropped": (0 + 1 + 2 + 3) / 4,
        }
    )
    metrics.reset()
    assert set(metrics.compute().values()) == {0.0}


def test_the_likelihood_is_the_mean_over_the_draws_of_an_example() -> None:
    collate = DIDCollator(pad_id=0, cls_id=1, bos_id=2, max_length=LONGEST, num_draws=5)
    batch = collate(
        [{"seed": seed, "target_ids": torch.tensor(TEXT[:size])} for seed, size in ((1, 3), (2, 1))]
    )
    loss = DIDLoss(suppressed_ids=SPECIAL)
    with torch.no_grad():
        together = loss.likelihood(MODEL, batch)
        single = loss.likelihood(MODEL, {**batch, "num_draws": torch.tensor(1)})
    assert together.num_draws == 5
    assert together.num_tokens.tolist() == [3, 1]
    assert torch.allclose(together.nll, single.nll.view(2, 5).mean(1))
    assert not math.isclose(float(single.nll[0]), float(single.nll[1]))
