"""Proves, with the hazards b = beta'/(1 - beta) and a = alpha'/(1 - alpha), q_j the distribution of the token
at mask j, and G_i the mean gap of slot i, both given x_t and x_1,

    int_0^1 E_{x_t} [b sum_j KL(q_j || f_j) + a sum_i D(G_i, g_i)] dt >= -log p(x_1):

the left side is the divergence of two Markov chains, that of x_t given x_1 and the network's; averaged over
the data it is their entropy if f and g are the posterior's (process: Kim et al. 2025, arXiv:2509.01025,
section 4). The published bound draws one embedding of x_t in x_1 and is looser.

All x_t are enumerated in float64, time is integrated by quadrature.

Both schedules are linear where nothing else is said: with s = -log(1 - t), both hazards times dt are ds, and
a token is absent with probability exp(-s) and masked with probability s exp(-s).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from xlm.modules import Cosine, Geometric, LogLinear, Polynomial
from xlm_flexmdm import (
    FlexMDM,
    FlexMDMCollator,
    FlexMDMExample,
    FlexMDMLikelihood,
    FlexMDMLikelihoodCollator,
    FlexMDMLoss,
    Interpolant,
)

from .exact_flexmdm import (
    BOS,
    FIRST,
    MASK,
    PAD,
    Array,
    Index,
    Noising,
    Posterior,
    State,
    TableNetwork,
    Tables,
    Text,
    at_times,
    batch_of,
    entropy,
    late_time_nodes,
    random_distribution,
    states,
    texts,
)

LINEAR = Interpolant(LogLinear(eps=0), LogLinear(eps=0))
SUPPRESSED = (PAD, BOS)
SMALL = Index(states(2, 3), 2)


def _bounds(
    posterior: Posterior, tables: Callable[[float], Tables] | None = None
) -> dict[Text, tuple[float, float]]:
    """Exact expectation of the tight and of the published bound for each text.

    ``tables`` gives the network's for exp(-s); by default it is the posterior.
    """
    network = TableNetwork(*((posterior.index, posterior.tables) if tables is None else (SMALL, tables)))
    s, weight = late_time_nodes()
    absent, one = np.exp(-s), np.ones_like(s)
    batch = at_times(posterior.batch, absent, absent, one, one)
    found = FlexMDMLoss(mask_id=MASK, suppressed_ids=SUPPRESSED).likelihood(network, batch)
    chances = zip(weight.tolist(), absent.tolist(), (s * absent).tolist(), strict=True)
    density = np.array([w * posterior.probabilities(a, m) for w, a, m in chances])
    bounds = torch.stack((found.nll, found.nll_published)).numpy().reshape(2, len(s), -1)
    total = (density * bounds).sum(1)
    result = dict.fromkeys(posterior.distribution, (0.0, 0.0))
    for row, tight, published in zip(posterior.rows, *total, strict=True):
        before = result[row.text]
        result[row.text] = before[0] + float(tight), before[1] + float(published)
    return result


@pytest.mark.parametrize("seed", [0, 1])
def test_tight_bound_of_the_posterior_is_the_entropy(seed: int) -> None:
    distribution = random_distribution(texts(2, 3), seed)
    bounds = _bounds(Posterior(distribution, 2))
    tight = sum(distribution[text] * bounds[text][0] for text in distribution)
    published = sum(distribution[text] * bounds[text][1] for text in distribution)
    assert tight == pytest.approx(entropy(distribution), abs=1e-10)
    assert published > tight + 0.1


@pytest.mark.parametrize(("length", "published"), [(2, 0.693), (3, 1.561), (4, 2.513), (5, 3.516)])
def test_point_mass_costs_nothing_in_the_tight_form_only(length: int, published: float) -> None:
    text = tuple(range(FIRST, FIRST + length))
    found = _bounds(Posterior({text: 1.0}, length))[text]
    assert found[0] == pytest.approx(0, abs=1e-10)
    assert found[1] == pytest.approx(published, abs=6e-4)


def test_tight_bound_merges_equal_tokens() -> None:
    """The token of a mask between two equal tokens is known, though not its index."""
    text = (FIRST, FIRST, FIRST)
    assert _bounds(Posterior({text: 1.0}, 1))[text][0] == pytest.approx(0, abs=1e-10)


def test_bound_with_fixed_tokens_is_the_conditional_entropy() -> None:
    """Given is one token in the middle; what stands on both sides has to be found."""
    given = FIRST + 2
    sides = texts(2, 2)[1:]
    fills = [(*left, given, *right) for left in sides for right in sides if len(left) + len(right) <= 3]
    distribution = random_distribution(fills, seed=2)
    posterior = Posterior(
        distribution, 3, {text: [token == given for token in text] for text in distribution}
    )
    bounds = _bounds(posterior)
    assert sum(distribution[text] * bounds[text][0] for text in distribution) == pytest.approx(
        entropy(distribution), abs=1e-10
    )


def test_a_fixed_token_is_its_own_in_the_clean_text() -> None:
    """The given token is the second of two equal ones: one token is missing on each side of it."""
    row = Noising((FIRST, FIRST, FIRST + 1), (False, True, False), indices=(1,), masked=(False,))
    batch = batch_of([row])
    one = np.ones(1)
    ones = Tables(np.ones((SMALL.size, 4)), np.full((SMALL.size, 3, 2), 0.5))
    found = FlexMDMLoss(mask_id=MASK).likelihood(
        TableNetwork(SMALL, lambda _: ones), at_times(batch, one, one, one, one)
    )
    assert float(found.nll) == pytest.approx(0, abs=1e-12)


def _random_tables(seed: int) -> Callable[[float], Tables]:
    """A network far from any posterior, with g = exp(-s) G and f independent of time."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(size=(SMALL.size, 4)) * 1.5
    distributions = generator.dirichlet([1.0, 1.0], size=(SMALL.size, 3))
    return lambda absent: Tables(absent * gaps, distributions)


def test_bound_is_above_minus_log_p_of_any_network() -> None:
    """p is that of the chain in continuous time: it solves the master equation, by Runge-Kutta in s."""
    tables = _random_tables(seed=3)
    probabilities = _final_distribution(tables)
    posterior = Posterior(random_distribution(texts(2, 3), seed=4), 2)
    for text, (tight, published) in _bounds(posterior, tables).items():
        exact = -math.log(probabilities[text])
        assert tight > exact - 1e-8, f"{text}: the bound {tight} is below -log p = {exact}"
        assert published > tight - 1e-8, f"{text}: the published form {published} is below the tight {tight}"
        if not text:
            # One path only: no insertion at all.
            assert tight == pytest.approx(exact, abs=1e-8)
            assert published == pytest.approx(exact, abs=1e-8)


def _final_distribution(tables: Callable[[float], Tables]) -> dict[Text, float]:
    """Distribution of the chain after s = 40. States above three tokens never come back: they are left
    out."""
    index = SMALL.numbers
    unmasking, insertion = np.zeros((2, len(index), len(index)))
    at_start = tables(1.0)
    for state, n in index.items():
        gaps, distributions = at_start.gaps[n], at_start.distributions[n]
        for cell, token in enumerate(state):
            if token == MASK:
                for value in range(2):
                    after: State = (*state[:cell], FIRST + value, *state[cell + 1 :])
                    unmasking[index[after], n] += distributions[cell, value]
                unmasking[n, n] -= 1
        for slot in range(len(state) + 1):
            insertion[n, n] -= gaps[slot]
            after = (*state[:slot], MASK, *state[slot:])
            if after in index:
                insertion[index[after], n] += gaps[slot]

    def slope(s: float, distribution: Array) -> Array:
        return (unmasking + math.exp(-s) * insertion) @ distribution

    distribution = np.zeros(len(index))
    distribution[index[()]] = 1
    step = 0.01
    for n in range(4000):
        s = n * step
        first = slope(s, distribution)
        second = slope(s + step / 2, distribution + step / 2 * first)
        third = slope(s + step / 2, distribution + step / 2 * second)
        fourth = slope(s + step, distribution + step * third)
        distribution = distribution + step / 6 * (first + 2 * second + 2 * third + fourth)
    return {state: float(distribution[n]) for state, n in index.items() if MASK not in state}


# The estimate


def _example(text: Text, seed: int, fixed: Sequence[bool] | None = None) -> FlexMDMExample:
    example: FlexMDMExample = {"seed": seed, "target_ids": torch.tensor(text, dtype=torch.int64)}
    if fixed is not None:
        example["fixed"] = torch.tensor(fixed, dtype=torch.bool)
    return example


@pytest.mark.parametrize("num_draws", [1, 4])
def test_estimate_of_the_collator_is_unbiased(num_draws: int) -> None:
    """Within four standard errors of the exact expectation, for both forms."""
    text = (FIRST, FIRST + 1, FIRST)
    tables = _random_tables(seed=5)
    exact = _bounds(Posterior({text: 1.0}, 2), tables)[text]
    # Linear schedules: a token is absent with probability 1 - t.
    network = TableNetwork(SMALL, lambda time: tables(1 - time))
    found = _estimate(network, [_example(text, seed) for seed in range(1500)], num_draws)
    assert found.num_draws == num_draws
    for nll, expected in ((found.nll, exact[0]), (found.nll_published, exact[1])):
        error = float(nll.std()) / math.sqrt(len(nll))
        assert abs(float(nll.mean()) - expected) < 4 * error
        assert error < 0.1 * expected


@pytest.mark.parametrize("time_power", [1.0, 2.0])
def test_training_loss_estimates_the_published_bound(time_power: float) -> None:
    """Whatever the distribution of the times, within four standard errors; and it is the sum over its
    rows."""
    text = (FIRST, FIRST + 1, FIRST)
    tables = _random_tables(seed=7)
    _, exact = _bounds(Posterior({text: 1.0}, 2), tables)[text]
    collate = FlexMDMCollator(interpolant=LINEAR, pad_id=PAD, mask_id=MASK, bos_id=BOS, time_power=time_power)
    batch = collate([_example(text, seed) for seed in range(3000)])
    network, loss = TableNetwork(SMALL, lambda time: tables(1 - time)), FlexMDMLoss(mask_id=MASK)
    rows = loss.likelihood(network, batch).nll_published
    output = loss(network, batch)
    torch.testing.assert_close(output.loss_sum, rows.sum())
    assert output.loss_count == 3 * 3000
    error = float(rows.std()) / math.sqrt(len(rows))
    assert abs(float(rows.mean()) - exact) < 4 * error
    assert error < 0.1 * exact


def test_draws_of_an_example_cover_the_time() -> None:
    collate = FlexMDMLikelihoodCollator(interpolant=LINEAR, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=4)
    batch = collate([_example((FIRST,), seed) for seed in range(500)])
    v = (1 - batch["time"]).sqrt()
    assert torch.equal((v * 4).long(), torch.arange(2000) % 4)
    within = v * 4 % 1
    assert abs(float(within.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 2000)
    assert torch.allclose(batch["unmasking_weight"], 2 / v)
    assert torch.allclose(batch["insertion_weight"], 2 / v)


def _estimate(
    model: torch.nn.Module, examples: list[FlexMDMExample], num_draws: int, interpolant: Interpolant = LINEAR
) -> FlexMDMLikelihood:
    collate = FlexMDMLikelihoodCollator(
        interpolant=interpolant, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=num_draws
    )
    with torch.no_grad():
        return FlexMDMLoss(mask_id=MASK, suppressed_ids=SUPPRESSED).likelihood(model, collate(examples))


@pytest.mark.parametrize(
    "interpolant",
    [
        Interpolant(Cosine(eps=0), LogLinear(eps=0)),
        Interpolant(LogLinear(eps=0), Polynomial(2.0)),
        Interpolant(Polynomial(2.0), Cosine(eps=0)),
    ],
)
def test_other_schedules_have_the_same_bound_at_the_posterior(interpolant: Interpolant) -> None:
    """0 for a text that is known, for any schedules: no weight may enter on the wrong side."""
    text = (FIRST, FIRST + 1, FIRST)
    # That of a single text does not depend on the time.
    posterior = Posterior({text: 1.0}, 2)
    network = TableNetwork(posterior.index, lambda _: posterior.tables(0.5))
    examples = [_example(text, seed) for seed in range(20)]
    for example in examples:
        found = _estimate(network, [example], num_draws=1, interpolant=interpolant)
        assert found.nll.abs().max() < 1e-9


def test_fixed_tokens_are_not_scored() -> None:
    model = FlexMDM(vocab_size=6, d_model=8, num_layers=1, num_heads=2, d_condition=8, max_length=4).double()
    all_fixed = _example((FIRST, FIRST + 1), 0, [True, True])
    one_free = _example((FIRST, FIRST + 1, FIRST), 1, [True, False, True])
    found = _estimate(model, [all_fixed, one_free], num_draws=2)
    assert torch.equal(found.num_tokens, torch.tensor([0, 1]))
    assert found.nll[0] == 0
    assert found.nll[1] > 0
    assert (found.nll_kind, found.models_length) == ("bound", True)


def test_bound_of_the_network_stays_finite_towards_the_end() -> None:
    """The heads vanish with 1 - alpha: rows next to t = 1, with weights of 1e15, cost next to nothing."""
    for head in ("expectation", "distribution"):
        model = FlexMDM(
            vocab_size=6, d_model=8, num_layers=1, num_heads=2, d_condition=8, max_length=4, head=head
        ).double()
        posterior = Posterior({(FIRST, FIRST + 1): 1.0}, 2)
        whole = [row.masked == (False, False) for row in posterior.rows].index(True)
        costs: list[float] = []
        for late in (1e-3, 1e-15):
            times, weights = np.array([late]), np.array([1 / late])
            batch = at_times(posterior.batch, 1 - times, times, weights, weights)
            with torch.no_grad():
                costs.append(float(FlexMDMLoss(mask_id=MASK).likelihood(model, batch).nll[whole]))
        assert costs[1] == pytest.approx(costs[0], rel=0.02)


@pytest.mark.parametrize(
    "interpolant",
    [
        Interpolant(Geometric(sigma_min=0.01, sigma_max=10.0), LogLinear(eps=0)),
        Interpolant(LogLinear(eps=0), Geometric(sigma_min=0.01, sigma_max=10.0)),
        Interpolant(LogLinear(eps=1e-3), LogLinear(eps=0)),
    ],
)
@pytest.mark.parametrize("kind", [FlexMDMCollator, FlexMDMLikelihoodCollator])
def test_schedules_that_do_not_run_from_0_to_1_have_no_likelihood(
    interpolant: Interpolant, kind: type[FlexMDMCollator] | type[FlexMDMLikelihoodCollator]
) -> None:
    collate = kind(interpolant=interpolant, pad_id=PAD, mask_id=MASK, bos_id=BOS)
    batch = collate([_example((FIRST, FIRST + 1), 0)])
    with pytest.raises(ValueError, match="from 0 at t = 0 to 1 at t = 1"):
        FlexMDMLoss(mask_id=MASK).likelihood(torch.nn.Identity(), batch)


def test_tokens_that_cannot_be_generated_are_refused() -> None:
    model = FlexMDM(vocab_size=6, d_model=8, num_layers=1, num_heads=2, d_condition=8, max_length=4)
    with pytest.raises(ValueError, match=r"token id 2, .*suppressed_ids"):
        _estimate(model, [_example((FIRST, BOS), 0)], num_draws=1)


def test_loss_and_predictor_leave_out_the_same_tokens() -> None:
    """The loss leaves MASK out of the softmax by itself, as the predictor does."""
    model = FlexMDM(vocab_size=6, d_model=8, num_layers=1, num_heads=2, d_condition=8, max_length=4).double()
    collate = FlexMDMLikelihoodCollator(interpolant=LINEAR, pad_id=PAD, mask_id=MASK, bos_id=BOS, num_draws=4)
    batch = collate([_example((FIRST, FIRST + 1, FIRST), seed) for seed in range(4)])
    with torch.no_grad():
        found, expected = (
            FlexMDMLoss(mask_id=MASK, suppressed_ids=ids).likelihood(model, batch).nll
            for ids in ((PAD, BOS), (PAD, BOS, MASK))
        )
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"token id 1, which has probability 0 as MASK"):
        FlexMDMLoss(mask_id=MASK).likelihood(model, {**batch, "target_ids": batch["target_ids"] * 0 + MASK})


def test_the_published_bound_is_the_tight_one_and_a_constant_of_the_length() -> None:
    """With g - gap - gap log g in place of D(gap, g), and the token of the sampled path, it is tight.

    The labelled paths of a text are as many paths of insertions and unmaskings, so nothing is left to average
    over embeddings. The difference is sum_n 1/n E[sum of gap log gap], n of the L tokens being absent.
    """
    posterior = Posterior(random_distribution(texts(2, 3), seed=3), 2)
    excess = np.array([sum(gap * math.log(gap) for gap in row.gaps if gap > 0) for row in posterior.rows])
    s, weight = late_time_nodes()
    chances = zip(weight.tolist(), np.exp(-s).tolist(), (s * np.exp(-s)).tolist(), strict=True)
    constant = excess * sum(w * posterior.probabilities(a, m) for w, a, m in chances)
    for tables in (None, _random_tables(4)):
        for text, (tight, published) in _bounds(posterior, tables).items():
            mine = [n for n, row in enumerate(posterior.rows) if row.text == text]
            assert published - constant[mine].sum() == pytest.approx(tight, abs=1e-9), text
            expected = (0.0, 0.0, 0.693147, 1.560710)[len(text)]
            assert constant[mine].sum() == pytest.approx(expected, abs=1e-6)
