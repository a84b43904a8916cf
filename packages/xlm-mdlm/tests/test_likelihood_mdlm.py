"""Proves, with m a uniform set of n of the L cells and w(t) = -alpha'_t / (1 - alpha_t), alpha from 1 to 0,

    int_0^1 w(t) E_{x_t} sum_{masked i} CE_i dt = sum_{n=1}^{L} E_{|m|=n} (1/n) sum_{i in m} CE_i
                                                >= -log p(x_0):

in the variable u = 1 - alpha_t no schedule is left, and integrating u leaves each n the weight 1/n; the left
side is the negative ELBO of the reverse process (Sahoo et al. 2024, arXiv:2406.07524, section 3.4).
All m against all orders of writing, enumerated in float64.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xlm.modules import Linear, LogLinear
from xlm_mdlm import MDLMCollator, MDLMExample, MDLMLikelihoodCollator, MDLMLoss

from .exact_mdlm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    TableNetwork,
    any_order_distribution,
    bound_by_order,
    masked_batch,
    oracle,
    random_data,
    subsets,
)

LENGTH = 3
START = (MASK,) * LENGTH
TEXT_IDS = range(FIRST, FIRST + 3)
LOSS = MDLMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS])


def network(seed: int = 1) -> TableNetwork:
    return TableNetwork(length=LENGTH, vocab_size=FIRST + 3, seed=seed)


def collator(num_draws: int = 1, target_length: int | None = None) -> MDLMLikelihoodCollator:
    return MDLMLikelihoodCollator(
        mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, target_length=target_length, num_draws=num_draws
    )


def with_time(num_draws: int = 1) -> MDLMLikelihoodCollator:
    return MDLMLikelihoodCollator(
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        time_conditioning=True,
        schedule=LogLinear(),
        num_draws=num_draws,
    )


def expected_nll(model: nn.Module, target: Cells, *, may_end: bool = False) -> float:
    """n ~ U{1..L}, a uniform set of n cells, weight L/n."""
    places = subsets(range(LENGTH))[1:]
    weights = [LENGTH / len(chosen) for chosen in places]
    probabilities = torch.tensor(
        [1 / LENGTH / math.comb(LENGTH, len(chosen)) for chosen in places], dtype=torch.float64
    )
    likelihood = LOSS.likelihood(model, masked_batch(target, places, weights, may_end=may_end))
    return float(likelihood.nll @ probabilities)


def test_expected_nll_is_the_mean_over_orders_and_a_bound() -> None:
    model = network()
    predict = model.prediction(TEXT_IDS)
    distribution = any_order_distribution(predict, START)
    assert math.isclose(sum(distribution.values()), 1.0, rel_tol=1e-12)
    gaps: list[float] = []
    for target in itertools.product(TEXT_IDS, repeat=LENGTH):
        nll = expected_nll(model, target)
        assert nll == pytest.approx(bound_by_order(predict, START, target), rel=0, abs=1e-12)
        gaps.append(nll + math.log(distribution[target]))
    assert min(gaps) >= 0, "a bound below -log p"
    assert max(gaps) > 0.1, "the orders agree: a network too simple to tell a bound from the value"


def test_bound_is_tight_for_the_best_network() -> None:
    """With the posterior of the data in all cells, the bound of each text is -log of its probability."""
    data = random_data(length=LENGTH, num_tokens=3, seed=3)
    for text, mass in data.items():
        assert bound_by_order(oracle(data), START, text) == pytest.approx(-math.log(mass), abs=1e-12)


def test_weights_by_time_have_the_same_expectation() -> None:
    """u ~ U(0, 1), each cell masked with probability u, weight 1/u: int u^(n-1) (1-u)^(L-n) du for n
    masks."""
    model = network()
    nodes, shares = np.polynomial.legendre.leggauss(20)
    u, share = (nodes + 1) / 2, shares / 2
    places = subsets(range(LENGTH))[1:]
    for target in ((FIRST, FIRST + 2, FIRST), (FIRST + 1,) * LENGTH):
        total = 0.0
        for level, part in zip(u, share, strict=True):
            batch = masked_batch(target, places, [1 / level] * len(places))
            masses = [level ** len(chosen) * (1 - level) ** (LENGTH - len(chosen)) for chosen in places]
            total += part * float(LOSS.likelihood(model, batch).nll @ torch.tensor(masses))
        assert total == pytest.approx(expected_nll(model, target), rel=1e-12)


def test_bound_with_a_fixed_width_holds_for_the_text() -> None:
    """The distribution is that of texts cut at their end; the bound charges for the one filling that training
    shows."""
    model = network(seed=2)
    distribution = any_order_distribution(model.prediction([PAD, EOS, *TEXT_IDS]), START)
    for size in range(LENGTH + 1):
        for text in itertools.product(TEXT_IDS, repeat=size):
            filling = (*text, EOS, PAD, PAD, PAD)[:LENGTH]
            mass = sum(
                probability
                for cells, probability in distribution.items()
                if cells[:size] == text and (size == LENGTH or cells[size] in (PAD, EOS))
            )
            assert expected_nll(model, filling, may_end=True) >= -math.log(mass)


def examples(number: int, length: int = LENGTH) -> list[MDLMExample]:
    return [{"seed": seed, "target_ids": torch.arange(length) % 3 + FIRST} for seed in range(number)]


def test_collators_estimate_the_bound_without_bias() -> None:
    """Means over many draws lie within 4 standard errors, and stratified draws vary less."""
    model, number = network(), 4000
    bound = bound_by_order(model.prediction(TEXT_IDS), START, (FIRST, FIRST + 1, FIRST + 2))
    spread: dict[str, float] = {}
    for name, collate in {
        "number": collator(),
        "four numbers": collator(4),
        "time": with_time(),
        "four times": with_time(4),
    }.items():
        nll = LOSS.likelihood(model, collate(examples(number))).nll
        assert nll.shape == (number,)
        spread[name] = float(nll.std())
        assert float(nll.mean()) == pytest.approx(bound, abs=4 * spread[name] / math.sqrt(number)), name
    assert spread["number"] < spread["time"]
    assert spread["four numbers"] < 0.9 * spread["number"] / 2, "no better than independent draws"


class ToldTheTime(nn.Module):
    """Logits of a cell are its column's, scaled by the noise: the other cells do not matter, the time
    does."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, noise: Tensor, *, positions: Tensor
    ) -> Tensor:
        row, column = positions // input_ids.shape[1], positions % input_ids.shape[1]
        return logits_of_column(column) * noise[row].unsqueeze(1)


def logits_of_column(column: Tensor) -> Tensor:
    return torch.sin(3.0 * torch.arange(FIRST + 3, dtype=torch.float64) + 2.0 * column.unsqueeze(1))


def test_a_network_is_conditioned_on_the_time_of_its_masks() -> None:
    """A cell is masked with probability u and weighs 1/u, so its expected cost is int_0^1 CE(noise(u)) du.

    noise(u) = -log(1 - u), but not more than at t = 1, where alpha is 1e-3.
    """
    number = 2000
    batch = with_time(8)(examples(number))
    assert "noise" in batch
    assert float(batch["noise"].max()) == pytest.approx(-math.log(1e-3))
    nll = LOSS.likelihood(ToldTheTime(), batch).nll
    nodes, shares = np.polynomial.legendre.leggauss(400)
    u, share = torch.tensor((nodes + 1) / 2), torch.tensor(shares / 2)
    noise = -(1 - u).clamp(min=1e-3).log()
    expected = 0.0
    for place in range(LENGTH):
        logits = logits_of_column(torch.tensor([1 + place]))[:, FIRST:] * noise.unsqueeze(1)
        expected += float((share * (logits.logsumexp(1) - logits[:, place])).sum())
    assert float(nll.mean()) == pytest.approx(expected, abs=4 * float(nll.std()) / math.sqrt(number))
    assert float(nll.std()) / math.sqrt(number) < 0.02 * expected, "too few draws to tell"


def test_likelihood_describes_itself() -> None:
    known = LOSS.likelihood(network(), collator(5)(examples(4)))
    assert (known.nll_kind, known.num_draws, known.models_length) == ("bound", 5, False)
    assert known.num_tokens.tolist() == [LENGTH] * 4
    assert known.nll.dtype == torch.float64
    fixed_width = LOSS.likelihood(network(), collator(2, target_length=LENGTH)(examples(4, length=2)))
    assert fixed_width.models_length
    assert fixed_width.num_tokens.tolist() == [2] * 4


def test_training_batches_have_no_likelihood() -> None:
    collate = MDLMCollator(schedule=LogLinear(), mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS)
    with pytest.raises(ValueError, match=r"training batch has no likelihood.*Use MDLMLikelihoodCollator"):
        LOSS.likelihood(network(), collate(examples(4)))


@pytest.mark.parametrize("schedule", [None, Linear(0.0, 1.0)], ids=repr)
def test_incomplete_schedules_have_no_likelihood(schedule: Linear | None) -> None:
    with pytest.raises(ValueError, match=r"needs a schedule with alpha\(0\) = 1 and alpha\(1\) = 0"):
        MDLMLikelihoodCollator(
            mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, time_conditioning=True, schedule=schedule
        )


def test_nothing_to_predict_costs_nothing() -> None:
    given: MDLMExample = {
        "seed": 0,
        "target_ids": torch.full((LENGTH,), FIRST),
        "fixed": torch.ones(LENGTH, dtype=torch.bool),
    }
    for collate in (collator(2), with_time(2)):
        likelihood = LOSS.likelihood(network(), collate([given, *examples(1)]))
        assert float(likelihood.nll[0]) == 0.0
        assert likelihood.num_tokens.tolist() == [0, LENGTH]
    assert float(LOSS.likelihood(network(), collator(2)(examples(1))).nll) > 0
