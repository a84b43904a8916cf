"""Proves, with s a uniform order of the L cells, m a uniform set of n of them and CE_i = -log p(x_i | x_-m),

    sum_{n=1}^{L} E_{|m|=n} (1/n) sum_{i in m} CE_i = E_s -log p(x | s) >= -log E_s p(x | s) = -log p(x):

the cell that comes next in a uniform order is uniform among those still masked, and Jensen's inequality
(Hoogeboom et al. 2022, arXiv:2110.02037). All m against all s, enumerated in float64.
"""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from xlm_mlm import MLMCollator, MLMExample, MLMLikelihoodCollator, MLMLoss

from .any_order import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    TableNetwork,
    all_subsets,
    any_order_bound,
    any_order_nll,
    filled_distribution,
    masked_batch,
)

LENGTH = 3
TEXT_IDS = range(FIRST, FIRST + 3)
LOSS = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS])


def network(seed: int = 1) -> TableNetwork:
    return TableNetwork(length=LENGTH, vocab_size=FIRST + 3, seed=seed)


def expected(
    model: TableNetwork,
    target: Cells,
    subsets: Sequence[tuple[int, ...]],
    weights: Sequence[float],
    probabilities: Sequence[float],
    may_end: Sequence[bool] = (False,) * LENGTH,
) -> float:
    likelihood = LOSS.likelihood(model, masked_batch(target, subsets, weights, may_end))
    return float(likelihood.nll @ torch.tensor(probabilities, dtype=torch.float64))


def expected_by_count(
    model: TableNetwork, target: Cells, may_end: Sequence[bool] = (False,) * LENGTH
) -> float:
    """n ~ U{1..L}, weight L/n."""
    subsets = all_subsets(LENGTH)[1:]
    weights = [LENGTH / len(subset) for subset in subsets]
    probabilities = [1 / LENGTH / math.comb(LENGTH, len(subset)) for subset in subsets]
    return expected(model, target, subsets, weights, probabilities, may_end)


def expected_by_rate(model: TableNetwork, target: Cells) -> float:
    """t ~ U(0, 1), weight (L + 1)/n: a set of n cells has probability B(n + 1, L - n + 1)."""
    subsets = all_subsets(LENGTH)
    weights = [(LENGTH + 1) / len(subset) if subset else 0.0 for subset in subsets]
    probabilities = [
        math.gamma(n + 1) * math.gamma(LENGTH - n + 1) / math.gamma(LENGTH + 2) for n in map(len, subsets)
    ]
    assert sum(probabilities) == pytest.approx(1)
    return expected(model, target, subsets, weights, probabilities)


def test_expected_nll_is_the_mean_over_orders() -> None:
    model = network()
    predict = model.prediction(lambda _: TEXT_IDS)
    start = (MASK,) * LENGTH
    gaps: list[float] = []
    for target in itertools.product(TEXT_IDS, repeat=LENGTH):
        bound = any_order_bound(predict, start, target)
        assert expected_by_count(model, target) == pytest.approx(bound, rel=0, abs=1e-12)
        assert expected_by_rate(model, target) == pytest.approx(bound, rel=0, abs=1e-12)
        gaps.append(bound - any_order_nll(predict, start, target))
    assert min(gaps) >= 0, "a bound below -log p"
    assert max(gaps) > 0.1, "the orders agree: a network too simple to tell a bound from the value"


def test_bound_with_a_fixed_width_holds_for_the_text() -> None:
    """The distribution is that of texts cut at their end; the bound is that of the filling that training
    shows."""
    model = network(seed=2)
    ids = [PAD, EOS, *TEXT_IDS]
    distribution = filled_distribution(model.prediction(lambda _: ids), (MASK,) * LENGTH, [1] * LENGTH)
    assert sum(distribution.values()) == pytest.approx(1)
    for size in range(LENGTH + 1):
        for text in itertools.product(TEXT_IDS, repeat=size):
            filling = (*text, EOS, PAD, PAD, PAD)[:LENGTH]
            bound = expected_by_count(model, filling, may_end=(True,) * LENGTH)
            exact = any_order_bound(model.prediction(lambda _: ids), (MASK,) * LENGTH, filling)
            assert bound == pytest.approx(exact, rel=0, abs=1e-12)
            mass = sum(
                probability
                for cells, probability in distribution.items()
                if cells[:size] == text and (size == LENGTH or cells[size] in (PAD, EOS))
            )
            assert bound >= -math.log(mass), f"{text}"


def test_likelihood_is_exact_for_a_single_cell() -> None:
    model = TableNetwork(length=1, vocab_size=FIRST + 3, seed=3)
    predict = model.prediction(lambda _: TEXT_IDS)
    for token in TEXT_IDS:
        nll = LOSS.likelihood(model, masked_batch((token,), [(0,)], [1.0], (False,))).nll
        assert float(nll) == pytest.approx(-math.log(predict((MASK,), 0)[token]), abs=1e-12)


def test_row_normalised_loss_has_expectation_bound_over_length_plus_one() -> None:
    model = network()
    loss = MLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS], normalise="rows")
    target: Cells = (FIRST, FIRST + 2, FIRST)
    total = 0.0
    for subset in all_subsets(LENGTH):
        output = loss(model, masked_batch(target, [subset], [0.0], (False,) * LENGTH))
        assert int(output.loss_count) == 1
        total += float(output.loss_sum) / (LENGTH + 1) / math.comb(LENGTH, len(subset))
    bound = any_order_bound(model.prediction(lambda _: TEXT_IDS), (MASK,) * LENGTH, target)
    assert total == pytest.approx(bound / (LENGTH + 1), rel=0, abs=1e-12)


def examples(number: int, length: int = LENGTH) -> list[MLMExample]:
    return [{"seed": seed, "target_ids": torch.arange(length) % 3 + FIRST} for seed in range(number)]


def test_collators_estimate_the_bound_without_bias() -> None:
    """Means over many draws lie within 4 standard errors, and stratified draws vary less."""
    model = network()
    target = (FIRST, FIRST + 1, FIRST + 2)
    bound = any_order_bound(model.prediction(lambda _: TEXT_IDS), (MASK,) * LENGTH, target)
    spread: dict[str, float] = {}
    for name, collate in {
        "rate": MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS),
        "count": MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS),
        "four": MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, num_draws=4),
    }.items():
        likelihood = LOSS.likelihood(model, collate(examples(4000)))
        nll = likelihood.nll.detach()
        assert nll.shape == (4000,)
        spread[name] = float(nll.std())
        assert float(nll.mean()) == pytest.approx(bound, abs=4 * spread[name] / math.sqrt(4000)), name
    assert spread["count"] < 0.9 * spread["rate"]
    assert spread["four"] < 0.9 * spread["count"] / 2, "stratified draws are no better than independent ones"


def test_likelihood_describes_itself() -> None:
    settings = {"pad_id": PAD, "mask_id": MASK, "bos_id": BOS, "eos_id": EOS, "num_draws": 5}
    known = LOSS.likelihood(network(), MLMLikelihoodCollator(**settings)(examples(4)))
    assert (known.nll_kind, known.num_draws, known.models_length) == ("bound", 5, False)
    assert known.num_tokens.tolist() == [LENGTH] * 4
    assert known.nll.dtype == torch.float64
    fixed_width = MLMLikelihoodCollator(**settings, target_length=LENGTH)(examples(4, length=2))
    likelihood = LOSS.likelihood(network(), fixed_width)
    assert likelihood.models_length
    assert likelihood.num_tokens.tolist() == [2] * 4


def test_fixed_rates_have_no_likelihood() -> None:
    collate = MLMCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, mask_rate=0.5)
    with pytest.raises(ValueError, match=r"fixed mask rate have no likelihood.*all numbers of masks"):
        LOSS.likelihood(network(), collate(examples(4)))


def test_nothing_to_predict_costs_nothing() -> None:
    collate = MLMLikelihoodCollator(pad_id=PAD, mask_id=MASK, bos_id=BOS, eos_id=EOS, num_draws=2)
    given: MLMExample = {
        "seed": 0,
        "target_ids": torch.full((LENGTH,), FIRST),
        "fixed": torch.ones(LENGTH, dtype=torch.bool),
    }
    likelihood = LOSS.likelihood(network(), collate([given, *examples(1)]))
    assert float(likelihood.nll[0]) == 0.0
    assert float(likelihood.nll[1]) > 0
    assert likelihood.num_tokens.tolist() == [0, LENGTH]
