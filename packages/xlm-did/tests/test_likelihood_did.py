"""The bound: above -log p of every text, tight for the reversal of the data, and three other forms of it.

The network's distribution p is that of the master equation of its rates; expectations over deletions are sums
over all of them, and over times quadratures (arXiv:2603.23507; the labelled form and its split over n are
derived in the README).
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from xlm.modules.records import Targets
from xlm_did import DIDExample, DIDLoss, DIDPredictor, DIDPromptCollator
from xlm_did.clocks_did import FirstHitting
from xlm_did.replay_did import Forced

from .exact_did import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    Array,
    Rates,
    RatesNetwork,
    Text,
    batch_of,
    beta_density,
    deleted_pairs,
    generated,
    kept_sets,
    nodes,
    num_embeddings,
    oracle,
    random_distribution,
    random_network,
    rates_of,
    rest_of,
    reverse_rates,
    texts,
)

LONGEST = 3
EVERY = texts(2, LONGEST)
MODEL = random_network(2, LONGEST, seed=11)
EXACT = generated(rates_of(MODEL, 2, LONGEST), EVERY)


def row_losses(model: nn.Module, text: Text, kept: tuple[int, ...], u: Array, prompt: Text = ()) -> Array:
    batch = batch_of(text, kept, u, LONGEST, prompt)
    with torch.no_grad():
        return DIDLoss(suppressed_ids=SPECIAL).likelihood(model, batch).nll.numpy()


def expected_nll(model: nn.Module, text: Text, prompt: Text = ()) -> float:
    """E of the row loss over n, its time and its subset, as the collator draws them."""
    u, weight = nodes(40, power=5)
    total = 0.0
    for n in range(len(text) + 1):
        density = beta_density(u, n, len(text) - n + 1) if n > 0 else beta_density(u, 1, len(text) + 1)
        subsets = kept_sets(text, n)
        for kept in subsets:
            losses = row_losses(model, text, kept, u, prompt)
            total += float((weight * density * losses).sum()) / len(subsets) / (len(text) + 1)
    return total


@pytest.mark.parametrize(("prompt", "sees_target"), [((), True), ((4, 3), True), ((4, 3), False)])
def test_expected_nll_bounds_every_text(prompt: Text, sees_target: bool) -> None:
    model = random_network(2, LONGEST, seed=5, prompt_sees_target=sees_target)
    exact = generated(rates_of(model, 2, LONGEST, prompt), EVERY)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-7)
    for text in EVERY:
        bound = expected_nll(model, text, prompt)
        assert bound >= -math.log(exact[text]) - 1e-6, f"{text}: {bound} is below -log p"
        if len(text) == 0:  # one path only
            assert bound == pytest.approx(-math.log(exact[text]), abs=1e-6)


def test_the_bound_of_the_reversal_is_the_entropy() -> None:
    data = random_distribution(2, range(LONGEST + 1), seed=2)
    model = RatesNetwork(oracle(data), LONGEST, 2)
    entropy = -sum(probability * math.log(probability) for probability in data.values())
    expected = sum(probability * expected_nll(model, text) for text, probability in data.items())
    assert expected == pytest.approx(entropy, abs=1e-8)


def test_the_labelled_form_equals_the_published_one_for_every_text() -> None:
    """integral du / u E_y [sum s - sum rho log s + sum (rho log rho - rho)], with rho over embeddings.

    With c log c - c of one embedding in place of rho log rho - rho the bound is looser: see ``loose``.
    """
    rates = rates_of(MODEL, 2, LONGEST)
    u, weight = nodes(40, power=5)
    loosest = 0.0
    for text in EVERY:
        published = 0.0
        for n in range(len(text) + 1):
            for kept in kept_sets(text, n):
                # Each subset is one of the embeddings of its rest, which all have the same terms.
                rest, missing = rest_of(text, kept), rates.expected(rest_of(text, kept), u)
                chance = (1 - u) ** len(rest) * u**n
                term = missing - n
                for pair, rho in reverse_rates(rest, text).items():
                    if rho > 0:
                        s = missing * rates.insert(rest, u)[pair]
                        term = term + rho * (math.log(rho) - np.log(s))
                published += float((weight * chance / u * term).sum())
        assert published == pytest.approx(expected_nll(MODEL, text), abs=1e-7), text
        loosest = max(loosest, published + math.log(EXACT[text]))
    assert loosest > 0.1  # the bound is not trivially the value itself


def test_texts_of_one_length_have_the_bound_of_insertion_models() -> None:
    """Time-free tokens and a known length: (L + 1) E_n [-1/n sum log J] - log L!, text by text.

    That is the bound of Patel et al. 2025 (arXiv:2505.05755) with a stop that is certain.
    """
    network = random_network(2, LONGEST, seed=7, reads_time=False)
    known = rates_of(network, 2, LONGEST)
    data = {text: 1 / 8 for text in EVERY if len(text) == LONGEST}
    model = RatesNetwork(Rates(numbers=oracle(data).numbers, insert=known.insert), LONGEST, 2)
    for text in data:
        insertion = 0.0
        for n in range(1, LONGEST + 1):
            subsets = kept_sets(text, n)
            for kept in subsets:
                table = known.insert(rest_of(text, kept), np.ones(1))
                scores = [math.log(table[pair][0]) for pair in deleted_pairs(text, kept)]
                insertion -= sum(scores) / n / len(subsets)
        assert expected_nll(model, text) == pytest.approx(insertion - math.lgamma(LONGEST + 1), abs=1e-7)


def test_uniform_times_of_a_hidden_clock_leave_a_uniform_number() -> None:
    """The forward process of insertion models is that of deletion with u ~ U(0, 1) not shown."""
    u, weight = nodes(20)
    for length, n in itertools.product(range(5), range(5)):
        if n <= length:
            chance = float((weight * math.comb(length, n) * u**n * (1 - u) ** (length - n)).sum())
            assert chance == pytest.approx(1 / (length + 1))


def test_visits_of_the_reversal_are_those_of_insertion_models() -> None:
    """It passes y with probability sum_x p(x) N(y, x) / C(|x|, |y|), so it stops in y with p(y) over that.

    This is the stop that an insertion model with row weight L + 1 learns: both generate the data.
    """
    data = random_distribution(2, range(3), seed=4)
    process = oracle(data)
    for rest in texts(2, 2):
        passes = sum(
            probability * num_embeddings(rest, text) / math.comb(len(text), len(rest))
            for text, probability in data.items()
            if len(text) >= len(rest)
        )
        absorbing = Rates(
            numbers=lambda text, end=rest: np.ones(1) if text == end else process.numbers(text),
            insert=lambda text, u, end=rest: {} if text == end else process.insert(text, u),
        )
        assert generated(absorbing, texts(2, 2))[rest] == pytest.approx(passes, abs=1e-7)


def plans(length: int, number: int) -> Iterator[tuple[tuple[int, ...], Array, Array]]:
    """Orders of deletion, times (points, length) in descending order, and weights: E over iid times."""
    x, w = nodes(number, power=2)
    for order in itertools.permutations(range(length)):
        points = np.array(list(itertools.product(x, repeat=length))).reshape(len(x) ** length, length)
        weights = np.array(list(itertools.product(w, repeat=length))).reshape(points.shape)
        times = points.cumprod(1)
        # Of the time t_k = t_(k - 1) a_k the density is t_(k - 1).
        jacobian = times[:, :-1].prod(1) if length > 1 else np.ones(len(times))
        yield order, times, weights.prod(1) * jacobian


def log_weights(model: nn.Module, text: Text, number: int) -> tuple[Array, Array]:
    """log-weights of replays at quadrature times, and what to multiply each with."""
    found, weights = [], []
    for order, times, weight in plans(len(text), number):
        by_place = np.full((len(times), max(len(text), 1)), 0.5)
        by_place[:, list(order)] = times
        rows = len(times)
        ids = torch.tensor([[*text] or [PAD]]).repeat(rows, 1)
        collate = DIDPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=LONGEST)
        examples: list[DIDExample] = [{"seed": 0}] * rows
        batch, places = collate(examples), torch.zeros(rows, 2, dtype=torch.float64)
        targets = Targets(ids=ids, lengths=torch.full((rows,), len(text)))
        forced = Forced.start(FirstHitting(), batch, targets, places, torch.tensor(by_place))
        predictor = DIDPredictor(pad_id=PAD, suppressed_ids=SPECIAL)
        with torch.no_grad():
            predictor.run(model, batch, torch.arange(rows), forced)
        found.append(forced.finish().numpy())
        weights.append(weight)
    return np.concatenate(found), np.concatenate(weights)


def test_replays_of_the_sampler_average_to_its_distribution_and_to_the_bound() -> None:
    """Over the times of the deletion process E w = p(x), and E [-log w] is the bound."""
    for text in [(), (4,), (3, 3), (4, 3), (3, 4, 3), (3, 3, 3)]:
        found, weight = log_weights(MODEL, text, 10 if len(text) < 3 else 6)
        assert float((weight * np.exp(found)).sum()) == pytest.approx(EXACT[text], rel=5e-4)
        assert float(-(weight * found).sum()) == pytest.approx(expected_nll(MODEL, text), abs=2e-4)
