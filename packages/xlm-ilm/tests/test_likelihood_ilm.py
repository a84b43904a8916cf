"""Proves, with z what is left of x after N ~ U{0..L} of its L tokens are dropped,

    (L + 1) E_N E_z [token + stop] - log L! = E_s -log p(x, s) - log L! >= -log sum_s p(x, s) = -log p(x):

the chain writes x in L! orders s, the last step stops it, and Jensen's inequality with the uniform
distribution of s (objective: Patel et al. 2025, arXiv:2505.05755, section 3). All z against all runs of the
chain, enumerated in float64; and which row weight has the data's distribution as its minimiser.
"""

import math

import pytest
import torch

from xlm_ilm import ILMLoss
from xlm_ilm.loss_ilm import RowWeight

from .exact_distribution import (
    SPECIAL,
    START,
    Chain,
    TabularNetwork,
    Text,
    all_drops,
    all_open,
    batch_of,
    final_distribution,
    network_chain,
    optimum,
    probability_of,
    random_network,
    texts,
    total_variation,
)


def _expected_nll(
    model: torch.nn.Module, text: Text, fixed: list[bool] | None = None, prompt: Text = ()
) -> float:
    drops = all_drops(text, fixed)
    num_missing = len(text) - sum(fixed or [])
    batch = batch_of(drops, [num_missing] * len(drops), prompt)
    with torch.no_grad():
        nll = ILMLoss(suppressed_ids=SPECIAL).likelihood(model, batch).nll
    return float(nll @ torch.tensor([drop.probability for drop in drops], dtype=torch.float64))


@pytest.mark.parametrize(("prompt", "sees_target"), [((), True), ((4, 3), True), ((4, 3), False)])
def test_expected_nll_bounds_every_text(prompt: Text, sees_target: bool) -> None:
    model = random_network(2, seed=1 if sees_target else 5, prompt_sees_target=sees_target)
    chain = network_chain(model, 2, prompt)
    for text in texts(2, 4):
        exact = -math.log(probability_of(chain, START, all_open(text)))
        bound = _expected_nll(model, text, prompt=prompt)
        assert bound >= exact - 1e-12, f"{text}: the bound {bound} is below -log p = {exact}"
        if len(text) <= 1:
            # One order of insertion only: nothing is lost by Jensen's inequality.
            assert bound == pytest.approx(exact, abs=1e-12)


def test_bound_is_exact_where_all_orders_are_alike() -> None:
    """Uniform insertions and a constant stop: every order has the same probability, the bound is exact."""
    uniform = Chain(
        stop=lambda _: 0.25,
        insert=lambda state: {
            (slot, token): 0.5 / len(state) for slot in range(len(state)) for token in (3, 4)
        },
    )
    model = TabularNetwork(uniform, 2, 4)
    for text in texts(2, 4):
        # (3/4)^L stops avoided, 1/(2 n) for each insertion into n slots, L! orders.
        exact = -math.log(0.25 * (0.75 * 0.5) ** len(text))
        assert _expected_nll(model, text) == pytest.approx(exact, abs=1e-12)


def test_expected_nll_bounds_infilling() -> None:
    model = random_network(2, seed=2)
    chain = network_chain(model, 2)
    for fixed in ([True, False, False, True], [False, True, False, True], [False, True, True, False]):
        for text in texts(2, 4)[-16:]:
            drops = all_drops(text, fixed)
            start, end = drops[-1].survivors, drops[0].survivors
            exact = -math.log(probability_of(chain, start, end))
            assert _expected_nll(model, text, fixed) >= exact - 1e-12, f"{text} with {fixed}"


def test_length_head_stops_with_the_probability_of_nothing_missing() -> None:
    model = random_network(2, seed=3, num_length_classes=5)
    chain = network_chain(model, 2)
    for text in texts(2, 3):
        exact = -math.log(probability_of(chain, START, all_open(text)))
        bound = _expected_nll(model, text)
        assert bound >= exact - 1e-12
        if len(text) <= 1:
            assert bound == pytest.approx(exact, abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("num_length_classes", [None, 4])
def test_a_target_that_is_given_whole_costs_nothing(num_length_classes: int | None) -> None:
    """It has no open slot, so the sampler never evaluates the stop decision."""
    model = random_network(2, seed=4, num_length_classes=num_length_classes)
    head = "stop" if num_length_classes is None else "length"
    loss = ILMLoss(suppressed_ids=SPECIAL, head=head, row_weight="length_plus_one")
    (whole,) = all_drops((3, 4, 3), [True, True, True])
    assert _expected_nll(model, (3, 4, 3), [True, True, True]) == 0.0
    output = loss(model, batch_of([whole], [0]))
    assert (float(output.loss_sum), int(output.num_complete), float(output.stop_at_complete)) == (0.0, 0, 0.0)

    # Beside other rows nothing of it is seen; an empty target that is not given is not one of this kind.
    others = [*all_drops((3, 4), [True, False]), *all_drops(())]
    alone = loss(model, batch_of(others, [1, 1, 0]))
    beside = loss(model, batch_of([*others, whole], [1, 1, 0, 0]))
    assert float(beside.loss_sum) == pytest.approx(float(alone.loss_sum), abs=1e-12)
    assert (int(beside.num_complete), int(beside.num_incomplete)) == (2, 1)
    assert _expected_nll(model, ()) > 0


def _random_distribution(num_tokens: int, lengths: range, seed: int) -> dict[Text, float]:
    chosen = [text for text in texts(num_tokens, lengths[-1]) if len(text) in lengths]
    weights = torch.rand(len(chosen), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2
    total = float(weights.sum())
    return {text: float(weight) / total for text, weight in zip(chosen, weights, strict=True)}


@pytest.mark.parametrize("lengths", [range(5), range(3, 4)])
def test_bound_is_tight_at_the_optimum(lengths: range) -> None:
    distribution = _random_distribution(2, lengths, seed=4)
    model = TabularNetwork(optimum(distribution, lambda length: length + 1, 2), 2, lengths[-1])
    entropy = -sum(probability * math.log(probability) for probability in distribution.values())
    expected = sum(probability * _expected_nll(model, text) for text, probability in distribution.items())
    assert expected == pytest.approx(entropy, abs=1e-10)


ONE_OR_TWO = {(3,): 0.5, (3, 4): 0.5}


@pytest.mark.parametrize(
    ("distribution", "row_weight", "generates_data"),
    [
        (_random_distribution(3, range(3, 4), seed=5), "one", True),
        (_random_distribution(3, range(3, 4), seed=5), "length_plus_one", True),
        (_random_distribution(2, range(5), seed=6), "one", False),
        (_random_distribution(2, range(5), seed=6), "length_plus_one", True),
        (ONE_OR_TWO, "one", False),
        (ONE_OR_TWO, "length_plus_one", True),
    ],
)
def test_row_weight_decides_the_distribution_of_the_minimiser(
    distribution: dict[Text, float], row_weight: RowWeight, generates_data: bool
) -> None:
    longest = max(len(text) for text in distribution)
    chain = optimum(
        distribution, (lambda length: length + 1) if row_weight == "length_plus_one" else lambda _: 1, 4
    )
    generated = final_distribution(chain, START, longest)
    assert (total_variation(generated, distribution) < 1e-12) == generates_data
    if distribution is ONE_OR_TWO and row_weight == "one":
        assert generated[3,] == pytest.approx(0.6)
        assert generated[3, 4] == pytest.approx(0.4)

    # The claimed minimiser is that of the package's loss: its gradient vanishes there, and only there.
    model = TabularNetwork(chain, 4, longest)
    for weight in ("one", "length_plus_one"):
        vanishes = weight == row_weight or len({len(text) for text in distribution}) == 1
        assert (_gradient_of_expected_loss(model, distribution, weight) < 1e-12) == vanishes


def _gradient_of_expected_loss(
    model: TabularNetwork, distribution: dict[Text, float], row_weight: RowWeight
) -> float:
    """Largest entry of the gradient of E[loss of a row], the expectation over texts and drops."""
    loss = ILMLoss(row_weight=row_weight, suppressed_ids=SPECIAL)
    total = torch.zeros((), dtype=torch.float64)
    for text, probability in distribution.items():
        for drop in all_drops(text):
            row = loss(model, batch_of([drop], [len(text)]))
            total = total + probability * drop.probability * row.loss_sum
    gradients = torch.autograd.grad(total, list(model.parameters()))
    return max(float(gradient.abs().max()) for gradient in gradients)
