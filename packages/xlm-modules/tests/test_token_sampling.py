"""Drawing tokens: exact distributions, independent computations in numpy and the edge cases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm.modules import (
    TokenSampling,
    apply_temperature,
    categorical,
    filter_top_k,
    filter_top_p,
    row_seeds,
    suppress_tokens,
    uniform,
)

INFINITY = float("inf")


def uniforms_of(rows: int) -> Tensor:
    return uniform(row_seeds(0, 0, torch.arange(rows)), 1, step=0, stream=0)[:, 0]


def ints(tensor: Tensor) -> list[int]:
    return [int(number) for number in tensor]


def floats(tensor: Tensor) -> list[float]:
    return [float(number) for number in tensor]


def random_logits(rows: int, vocab: int, *, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def numpy_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def numpy_nucleus(logits: NDArray[np.float64], top_p: float) -> set[int]:
    """Ids of the smallest set of most probable tokens with mass of at least top_p, found one by one."""
    probabilities = numpy_softmax(logits)
    nucleus: set[int] = set()
    mass = 0.0
    for token in sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token)):
        if mass >= top_p:
            break
        nucleus.add(token)
        mass += float(probabilities[token])
    return nucleus


def support(logits: Tensor) -> list[set[int]]:
    return [{int(token) for token in row.isfinite().nonzero()} for row in logits]


class TestCategorical:
    def test_a_grid_of_uniforms_gives_the_exact_shares(self):
        shares = [0.125, 0.0, 0.5, 0.25, 0.125, 0.0]
        num = 1 << 12
        grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
        logits = torch.tensor(shares, dtype=torch.float64).log().expand(num, -1)
        counts = torch.bincount(categorical(logits, grid), minlength=6)
        assert ints(counts) == [share * num for share in shares]

    def test_distribution_of_random_draws(self):
        """Chi-square with 5 degrees of freedom: above 30 with probability 1e-5."""
        num = 100_000
        logits = torch.tensor([0.3, -1.0, -INFINITY, 2.0, -4.0, 0.0, 1.0])
        counts = torch.bincount(categorical(logits.expand(num, -1), uniforms_of(num)), minlength=7).numpy()
        expected = num * numpy_softmax(logits.double().numpy())
        assert counts[2] == 0
        open_columns = expected > 0
        assert float(((counts - expected)[open_columns] ** 2 / expected[open_columns]).sum()) < 30

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_draws_equal_numpys_search_in_the_cumulative_distribution(self, dtype: torch.dtype):
        logits, uniforms = random_logits(300, 41).to(dtype), uniforms_of(300)
        expected = [
            int(np.searchsorted(np.cumsum(numpy_softmax(row)), number, side="right"))
            for row, number in zip(logits.double().numpy(), floats(uniforms), strict=True)
        ]
        assert ints(categorical(logits, uniforms)) == expected

    @pytest.mark.parametrize("number", [0.0, 2.0**-53, 1e-17, 0.5, 1 - 2.0**-52, 1 - 2.0**-53])
    def test_columns_without_probability_are_never_drawn(self, number: float):
        rows, vocab = 40, 5000
        generator = torch.Generator().manual_seed(1)
        logits = random_logits(rows, vocab, seed=2)
        logits[torch.rand(rows, vocab, generator=generator) < 0.7] = -INFINITY
        logits[:, 0] = logits[:, -1] = -INFINITY
        drawn = categorical(logits, torch.full((rows,), number, dtype=torch.float64))
        assert bool(logits.gather(1, drawn.unsqueeze(1)).isfinite().all())

    def test_uniforms_next_to_the_ends_draw_the_outermost_columns(self):
        logits = torch.tensor([[-INFINITY, -30.0, 0.0, -30.0, -INFINITY]]).expand(2, -1)
        ends = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
        assert ints(categorical(logits, ends)) == [1, 3]

    def test_the_tail_is_not_truncated(self):
        """A token of probability 1e-12 is drawn by uniforms below 1e-12 and by no others."""
        rare = torch.tensor([[np.log(1e-12), np.log1p(-1e-12)]], dtype=torch.float64).expand(2, -1)
        uniforms = torch.tensor([0.999e-12, 1.001e-12], dtype=torch.float64)
        assert ints(categorical(rare, uniforms)) == [0, 1]

    @pytest.mark.parametrize("number", [0.0, 0.25, 1 - 2.0**-53])
    def test_a_cumulative_sum_that_is_not_monotone_does_no_harm(
        self, monkeypatch: pytest.MonkeyPatch, number: float
    ):
        """Parallel sums, as on a GPU, round differently from column to column."""
        cumsum = Tensor.cumsum

        def rounded_cumsum(tensor: Tensor, dim: int) -> Tensor:
            noise = 1e-15 * (-1) ** torch.arange(tensor.shape[dim], dtype=torch.float64)
            return cumsum(tensor, dim) + noise

        monkeypatch.setattr(Tensor, "cumsum", rounded_cumsum)
        logits = torch.tensor([[-INFINITY, 0.0, -INFINITY, 0.0, -INFINITY, -INFINITY, -INFINITY]])
        (drawn,) = ints(categorical(logits, torch.tensor([number], dtype=torch.float64)))
        assert drawn == (1 if number < 0.5 else 3)

    def test_adding_a_constant_changes_nothing_however_large(self):
        logits = random_logits(200, 9).double().round(decimals=1)
        drawn = categorical(logits, uniforms_of(200))
        assert torch.equal(categorical(logits + 2.0**20, uniforms_of(200)), drawn)
        assert torch.equal(categorical(logits - 2.0**20, uniforms_of(200)), drawn)

    def test_a_row_is_drawn_as_if_alone(self):
        logits, uniforms = random_logits(20, 7), uniforms_of(20)
        together = categorical(logits, uniforms)
        alone = [int(categorical(logits[row : row + 1], uniforms[row : row + 1])) for row in range(20)]
        assert ints(together) == alone

    @pytest.mark.parametrize("bad", [[-INFINITY] * 3, [0.0, float("nan"), 0.0], [0.0, INFINITY, 0.0]])
    def test_a_row_without_a_distribution_is_refused(self, bad: list[float]):
        logits = torch.tensor([[0.0, 1.0, 2.0], bad])
        with pytest.raises(ValueError, match="no token to draw"):
            categorical(logits, uniforms_of(2))

    def test_no_rows_are_allowed(self):
        assert categorical(torch.zeros(0, 4), uniforms_of(0)).shape == (0,)


class TestSuppressedTokens:
    def test_they_have_no_probability_and_the_others_keep_their_odds(self):
        logits = random_logits(5, 7)
        distribution = suppress_tokens(logits, [0, 6, 3]).softmax(-1).numpy()
        left = [1, 2, 4, 5]
        assert not distribution[:, [0, 3, 6]].any()
        for row, found in zip(logits.double().numpy(), distribution, strict=True):
            np.testing.assert_allclose(found[left], numpy_softmax(row[left]), rtol=1e-5)

    def test_the_argument_is_not_changed_and_half_precision_is_widened(self):
        logits = random_logits(2, 4).bfloat16()
        before = logits.clone()
        assert suppress_tokens(logits, [1]).dtype == suppress_tokens(logits, []).dtype == torch.float32
        assert torch.equal(logits, before)

    def test_an_id_outside_the_vocabulary_is_refused(self):
        with pytest.raises(IndexError):
            suppress_tokens(random_logits(2, 4), [4])


class TestTopK:
    @pytest.mark.parametrize("top_k", [1, 2, 3])
    def test_support_equals_the_reference(self, load_vectors: Callable[[str], dict[str, Tensor]], top_k: int):
        vectors = load_vectors("filters")
        kept = filter_top_k(vectors["in.logits"], top_k).isfinite()
        assert torch.equal(kept.long(), vectors[f"xlm.top_k{top_k}.support"])

    @pytest.mark.parametrize("top_k", [1, 5, 30, 31])
    def test_support_equals_a_sort_in_numpy(self, top_k: int):
        # Whole numbers, so that ties are frequent.
        logits = random_logits(100, 31).round()
        filtered = filter_top_k(logits, top_k)
        best = np.argsort(-logits.double().numpy(), axis=-1, kind="stable")[:, :top_k]
        assert support(filtered) == [set(row) for row in best.tolist()]
        kept = filtered.isfinite()
        assert torch.equal(filtered[kept], logits[kept])

    def test_of_equal_logits_exactly_k_with_the_lowest_ids_stay(self):
        logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
        assert support(filter_top_k(logits, 3)) == [{1, 2, 4}, {0, 1, 2}]

    def test_closed_tokens_stay_closed(self):
        logits = torch.tensor([[-INFINITY, 1.0, -INFINITY, 0.0]])
        assert support(filter_top_k(logits, 3)) == [{1, 3}]

    @pytest.mark.parametrize("top_k", [5, 6, 1000])
    def test_k_of_the_vocabulary_or_more_keeps_all(self, top_k: int):
        logits = random_logits(4, 5)
        assert torch.equal(filter_top_k(logits, top_k), logits)

    def test_any_leading_axes(self):
        logits = random_logits(6, 5).bfloat16()
        filtered = filter_top_k(logits.view(2, 3, 5), 2)
        assert filtered.dtype == torch.bfloat16
        assert torch.equal(filtered.view(6, 5), filter_top_k(logits, 2))

    @pytest.mark.parametrize("top_k", [0, -1])
    def test_k_below_one_is_refused(self, top_k: int):
        with pytest.raises(ValueError, match="top_k must be at least 1"):
            filter_top_k(random_logits(2, 3), top_k)


class TestTopP:
    @pytest.mark.parametrize("top_p", [0.3, 0.5, 0.65, 0.88])
    def test_support_is_the_references_and_the_token_that_crosses(
        self, load_vectors: Callable[[str], dict[str, Tensor]], top_p: float
    ):
        """The reference leaves out the token that crosses p, unless it is the first one."""
        vectors = load_vectors("filters")
        logits = vectors["in.logits"].double()
        for row, reference_row in zip(logits, vectors[f"xlm.top_p{top_p}.support"], strict=True):
            reference = {int(token) for token in reference_row.nonzero()}
            if float(row.softmax(0)[sorted(reference)].sum()) < top_p:
                reference.add(len(reference))  # the logits of the vectors are in falling order
            assert support(filter_top_p(row.unsqueeze(0), top_p)) == [reference]

    @pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999999])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_support_equals_a_sum_token_by_token(self, top_p: float, dtype: torch.dtype):
        logits = random_logits(60, 31).to(dtype)
        filtered = filter_top_p(logits, top_p)
        assert filtered.dtype == dtype
        assert support(filtered) == [numpy_nucleus(row, top_p) for row in logits.double().numpy()]
        kept = filtered.isfinite()
        assert torch.equal(filtered[kept], logits[kept])

    def test_a_set_that_reaches_p_exactly_is_enough(self):
        logits = torch.tensor([[0.25, 0.5, 0.125, 0.125]], dtype=torch.float64).log()
        assert support(filter_top_p(logits, 0.75)) == [{0, 1}]
        assert support(filter_top_p(logits, 0.7500001)) == [{0, 1, 2}]

    def test_of_equal_logits_those_with_the_lowest_ids_come_first(self):
        logits = random_logits(60, 101).round()
        assert support(filter_top_p(logits, 0.7)) == [
            numpy_nucleus(row, 0.7) for row in logits.double().numpy()
        ]

    def test_p_of_one_keeps_every_token_of_a_large_vocabulary(self):
        logits = random_logits(2, 50_000)
        logits[:, 7] = -100  # the others sum up to 1 in float64
        assert torch.equal(filter_top_p(logits, 1.0), logits)

    def test_closed_tokens_stay_closed(self):
        logits = torch.tensor([[-INFINITY, 1.0, -INFINITY, 0.0]])
        assert support(filter_top_p(logits, 0.99)) == [{1, 3}]

    def test_any_leading_axes(self):
        logits = random_logits(6, 5)
        assert torch.equal(filter_top_p(logits.view(2, 3, 5), 0.6).view(6, 5), filter_top_p(logits, 0.6))

    @pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
    def test_p_outside_its_range_is_refused(self, top_p: float):
        with pytest.raises(ValueError, match="top_p must be in"):
            filter_top_p(random_logits(2, 3), top_p)


class TestTokenSampling:
    def test_without_options_it_is_categorical(self):
        logits, uniforms = random_logits(200, 13), uniforms_of(200)
        assert torch.equal(TokenSampling().draw(logits, uniforms), categorical(logits, uniforms))

    def test_temperature_zero_takes_the_first_of_the_best(self):
        logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 2.0]])
        assert ints(TokenSampling(temperature=0.0).draw(logits, uniforms_of(2))) == [1, 0]
        assert ints(TokenSampling(temperature=0.0, top_k=1, top_p=0.1).draw(logits, uniforms_of(2))) == [1, 0]

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
    @pytest.mark.parametrize("top_k", [None, 4])
    @pytest.mark.parametrize("top_p", [None, 0.8])
    def test_draws_and_log_probs_equal_a_step_by_step_computation(
        self, temperature: float, top_k: int | None, top_p: float | None
    ):
        """Temperature first, then top-k, then top-p on what it left, from bfloat16 logits."""
        logits, uniforms = random_logits(200, 13).bfloat16(), uniforms_of(200)
        sampling = TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p)
        drawn, log_probs = sampling.draw(logits, uniforms), sampling.log_probs(logits)
        assert log_probs.dtype == torch.float64
        assert torch.equal(sampling.score(logits, drawn), log_probs[torch.arange(200), drawn])
        for row, (logit, number) in enumerate(zip(logits.double().numpy(), floats(uniforms), strict=True)):
            filtered = logit / temperature
            if top_k is not None:
                filtered[np.argsort(-filtered, kind="stable")[top_k:]] = -np.inf
            if top_p is not None:
                filtered[[t for t in range(13) if t not in numpy_nucleus(filtered, top_p)]] = -np.inf
            distribution = numpy_softmax(filtered)
            assert int(drawn[row]) == int(np.searchsorted(np.cumsum(distribution), number, side="right"))
            np.testing.assert_allclose(log_probs[row].exp().numpy(), distribution, rtol=1e-12, atol=0)

    def test_log_probs_of_greedy_and_of_a_row_without_tokens(self):
        logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 2.0]])
        expected = [[-INFINITY, 0.0, -INFINITY], [0.0, -INFINITY, -INFINITY]]
        assert TokenSampling(temperature=0.0).log_probs(logits).tolist() == expected
        with pytest.raises(ValueError, match="has no token to draw"):
            TokenSampling().score(torch.full((1, 3), -INFINITY), torch.tensor([0]))

    def test_the_gradient_of_a_score_is_that_of_a_softmax_over_the_tokens_that_stay(self):
        logits = torch.tensor([[1.0, 0.5, -1.0, -INFINITY]], dtype=torch.float64, requires_grad=True)
        TokenSampling(temperature=0.5, top_k=2).score(logits, torch.tensor([1])).sum().backward()
        first = 1 / (1 + np.exp(-1.0))  # of the tokens 0 and 1, at twice their logits
        expected = torch.tensor([[-2 * first, 2 * first, 0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(logits.grad, expected)

    def test_a_low_temperature_approaches_greedy(self):
        logits, uniforms = random_logits(200, 13), uniforms_of(200)
        assert torch.equal(TokenSampling(temperature=1e-6).draw(logits, uniforms), logits.argmax(-1))

    def test_logits_are_left_as_they_are(self):
        logits = random_logits(20, 13)
        before = logits.clone()
        TokenSampling(temperature=0.7, top_k=3, top_p=0.5).draw(logits, uniforms_of(20))
        assert torch.equal(logits, before)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": -1.0}, "^temperature must be at least 0 and finite, got -1.0"),
            ({"temperature": INFINITY}, "^temperature must be at least 0 and finite, got inf"),
            ({"temperature": float("nan")}, "^temperature must be"),
            ({"top_k": 0}, "^top_k must be None or at least 1, got 0"),
            ({"top_p": 0.0}, r"^top_p must be None or in \(0, 1\], got 0.0"),
            ({"top_p": 1.5, "prefix": "slot_"}, r"^slot_top_p must be None or in \(0, 1\], got 1.5"),
        ],
    )
    def test_options_outside_their_range_are_refused(self, options: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            TokenSampling(**options)


def test_temperature_divides_the_logits():
    logits = torch.tensor([[1.0, -2.0, -INFINITY]])
    assert torch.equal(apply_temperature(logits, 0.5), torch.tensor([[2.0, -4.0, -INFINITY]]))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be greater than 0"):
            apply_temperature(logits, temperature)
