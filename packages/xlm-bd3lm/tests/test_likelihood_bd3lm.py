"""The bound and the distribution by enumeration, with m a uniform set of n of the D_b cells of a block:

    NELBO(x) = sum_b E_n E_{|m|=n} (D_b / n) sum_{i in m} CE_i = sum_b E_orders -log p(x^b | order, x^{<b})
             >= -log p(x),

with equality for blocks of one cell, where the model is autoregressive. Table networks of up to 4 cells.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xlm.modules import LogLinear
from xlm_bd3lm import BD3LMCollator, BD3LMExample, BD3LMLikelihoodCollator, BD3LMLoss, BD3LMRotary

from .exact_bd3lm import (
    BOS,
    EOS,
    FIRST,
    MASK,
    PAD,
    Cells,
    TableNetwork,
    block_by_block,
    bound,
    log_prob_of_row,
    masked_batch,
    oracle,
    random_data,
    row_of,
    subsets,
    total_variation,
)

LENGTH, NUM_TOKENS = 4, 2
TEXTS = list(itertools.product(range(FIRST, FIRST + NUM_TOKENS), repeat=LENGTH))
LOSS = BD3LMLoss(mask_id=MASK, pad_id=PAD, eos_id=EOS, suppressed_ids=[BOS])
EACH_BLOCK_LENGTH = pytest.mark.parametrize("block_length", [1, 2, 3, 4, 7])


def network(length: int = LENGTH, seed: int = 1) -> TableNetwork:
    return TableNetwork(length=length, num_tokens=NUM_TOKENS, seed=seed)


def collator(
    block_length: int,
    num_draws: int = 1,
    max_target_length: int | None = None,
    window_length: int | None = None,
) -> BD3LMLikelihoodCollator:
    return BD3LMLikelihoodCollator(
        mask_id=MASK,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        block_length=block_length,
        max_target_length=max_target_length,
        num_draws=num_draws,
        window_length=window_length,
    )


def expected_nll(model: nn.Module, row: Cells, block_length: int, *, may_end: bool = False) -> float:
    """In each block n ~ U{1..D_b}, a uniform set of n cells, weight D_b / n: all sets of one block."""
    places: list[tuple[int, ...]] = []
    weights: list[float] = []
    for start in range(0, len(row), block_length):
        size = min(block_length, len(row) - start)
        for chosen in subsets(range(start, start + size))[1:]:
            places.append(chosen)
            weights.append(1 / len(chosen) / math.comb(size, len(chosen)))
    batch = masked_batch(row, block_length, places, weights, may_end=may_end)
    return float(LOSS.likelihood(model, batch).nll.sum())


@EACH_BLOCK_LENGTH
def test_expected_nll_is_the_mean_over_orders_and_a_bound(block_length: int) -> None:
    model = network()
    predict = model.prediction(block_length)
    gaps: list[float] = []
    total = 0.0
    for text in TEXTS:
        nll, log_prob = expected_nll(model, text, block_length), log_prob_of_row(predict, text, block_length)
        assert nll == pytest.approx(bound(predict, text, block_length), rel=0, abs=1e-12)
        gaps.append(nll + log_prob)
        total += math.exp(log_prob)
    assert total == pytest.approx(1.0, abs=1e-12)
    if block_length == 1:
        assert max(map(abs, gaps)) < 1e-12, "blocks of one cell: the autoregressive likelihood"
    else:
        assert min(gaps) > 1e-4, "a bound below -log p"


@EACH_BLOCK_LENGTH
def test_the_best_network_has_the_entropy_and_the_distribution_of_the_data(block_length: int) -> None:
    data = random_data(length=LENGTH, num_tokens=NUM_TOKENS, seed=3)
    for text, mass in data.items():
        assert bound(oracle(data), text, block_length) == pytest.approx(-math.log(mass), abs=1e-12)
    assert total_variation(block_by_block(oracle(data), LENGTH, block_length), data) < 1e-15


@pytest.mark.parametrize("block_length", [1, 2, 3])
def test_texts_with_their_ends_have_mass_one(block_length: int) -> None:
    """Texts of 0 to 2 D tokens that end, and what is cut; rows bound their texts."""
    length = 2 * block_length if block_length < 3 else 3
    model = network(length=length, seed=2)
    predict = model.prediction(block_length, may_end=True)
    texts = block_by_block(predict, length, block_length)
    assert sum(texts.values()) == pytest.approx(1.0, abs=1e-12)
    for text, mass in texts.items():
        row = row_of(text, block_length, may_end=True)
        if len(row) > length:  # its end is beyond the limit, where it is cut
            continue
        nll = expected_nll(model, row, block_length, may_end=True)
        assert nll >= -math.log(mass) - 1e-12
        if block_length == 1:
            assert nll == pytest.approx(-math.log(mass), abs=1e-12)


def test_the_count_form_is_the_integral_over_times() -> None:
    """int_0^1 1/t E_{x_t} sum CE dt for alpha = 1 - t: t^(n-1) (1-t)^(D-n) for n masks of D."""
    model, block_length = network(), 2
    nodes, shares = np.polynomial.legendre.leggauss(24)
    for row in TEXTS[::5]:
        total = 0.0
        for start in (0, 2):
            places = subsets(range(start, start + 2))[1:]
            for t, share in zip((nodes + 1) / 2, shares / 2, strict=True):
                weights = [share / t * t ** len(chosen) * (1 - t) ** (2 - len(chosen)) for chosen in places]
                batch = masked_batch(row, block_length, places, weights)
                total += float(LOSS.likelihood(model, batch).nll.sum())
        assert total == pytest.approx(expected_nll(model, row, block_length), rel=1e-12)


def examples(number: int, length: int = LENGTH) -> list[BD3LMExample]:
    return [{"seed": seed, "target_ids": torch.arange(length) % NUM_TOKENS + FIRST} for seed in range(number)]


@pytest.mark.parametrize("block_length", [2, 3, 4])
def test_draws_estimate_the_bound_without_bias(block_length: int) -> None:
    """Means over many draws lie within 4 standard errors, and stratified draws vary less."""
    model, number = network(), 3000
    expected = bound(model.prediction(block_length), (FIRST, FIRST + 1) * 2, block_length)
    spread: list[float] = []
    for num_draws in (1, 4):
        nll = LOSS.likelihood(model, collator(block_length, num_draws)(examples(number))).nll
        assert nll.shape == (number,)
        spread.append(float(nll.std()))
        assert float(nll.mean()) == pytest.approx(expected, abs=4 * spread[-1] / math.sqrt(number))
    assert spread[1] < 0.95 * spread[0] / 2, "no better than independent draws"


def test_the_blocks_of_a_draw_have_orders_of_their_own() -> None:
    """Of two draws, one has a low number in each block; which one differs from block to block."""
    batch = collator(4, 2)(examples(400, length=8))
    numbers = batch["masked"].view(400, 2, 2, 4).sum(3)  # examples, draws, blocks
    assert ((numbers > 2).sum(1) == 1).all()
    same = ((numbers[:, 0] > 2).sum(1) != 1).double().mean()
    assert float(same) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(400))


def test_blocks_of_one_cell_are_scored_exactly_by_one_draw() -> None:
    """The sum of -log p of one token after the other, also with EOS; no variance."""
    model = BD3LMRotary(vocab_size=FIRST + 4, d_model=16, num_layers=2, num_heads=2).double().eval()
    texts: list[BD3LMExample] = [
        {"seed": 1, "prompt_ids": torch.tensor([5]), "target_ids": torch.tensor([6, 4, 7])},
        {"seed": 2, "target_ids": torch.tensor([], dtype=torch.int64)},
    ]
    found = LOSS.likelihood(model, collator(1, num_draws=5, max_target_length=4)(texts))
    assert (found.nll_kind, found.num_draws, found.models_length) == ("exact", 1, True)
    assert found.num_tokens.tolist() == [3, 0]
    for number, row in enumerate([[5, BOS, 6, 4, 7, EOS], [BOS, EOS]]):
        start, nll = row.index(BOS) + 1, 0.0
        for stop in range(start, len(row)):
            ids = torch.tensor([[*row[:stop], MASK]])
            blocks = torch.tensor([*[0] * start, *range(1, stop - start + 1), stop - start + 1])
            logits = model(ids, (blocks.unsqueeze(1) >= blocks).unsqueeze(0), torch.arange(stop + 1)[None])
            log_probs = logits[0, -1].index_fill(0, torch.tensor([MASK, PAD, BOS]), -math.inf).log_softmax(0)
            nll -= float(log_probs[row[stop]].detach())
        assert float(found.nll[number].detach()) == pytest.approx(nll, rel=1e-12)
    assert torch.equal(
        found.nll, LOSS.likelihood(model, collator(1, 5, 4)([{**texts[0], "seed": 9}, texts[1]])).nll
    )


def test_likelihood_describes_itself() -> None:
    known = LOSS.likelihood(network(), collator(2, 5)(examples(4)))
    assert (known.nll_kind, known.num_draws, known.models_length) == ("bound", 5, False)
    assert known.num_tokens.tolist() == [LENGTH] * 4
    assert known.nll.dtype == torch.float64
    with_end = LOSS.likelihood(network(), collator(2, 2, LENGTH)(examples(4, length=2)))
    assert with_end.models_length
    assert with_end.num_tokens.tolist() == [2] * 4


def test_training_batches_have_no_likelihood() -> None:
    collate = BD3LMCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, block_length=2)
    with pytest.raises(ValueError, match=r"training batch has no likelihood.*Use BD3LMLikelihoodCollator"):
        LOSS.likelihood(network(), collate(examples(4)))


def test_nothing_to_predict_costs_nothing() -> None:
    given: BD3LMExample = {
        "seed": 0,
        "target_ids": torch.full((LENGTH,), FIRST),
        "fixed": torch.ones(LENGTH, dtype=torch.bool),
    }
    likelihood = LOSS.likelihood(network(), collator(3, 2)([given, *examples(1)]))
    assert float(likelihood.nll[0]) == 0.0
    assert float(likelihood.nll[1]) > 0
    assert likelihood.num_tokens.tolist() == [0, LENGTH]


def test_a_window_scores_each_block_after_the_ones_it_shows() -> None:
    """Blocks of 2 in windows of 4: each is that of a row with prompt, BOS and the block before."""
    model = BD3LMRotary(vocab_size=FIRST + 4, d_model=16, num_layers=2, num_heads=2).double().eval()
    prompt, text = torch.tensor([6]), torch.tensor([4, 5, 6, 7, 7, 5, 4])
    example: BD3LMExample = {"seed": 3, "prompt_ids": prompt, "target_ids": text}
    short: BD3LMExample = {"seed": 4, "target_ids": text[:3]}
    windowed = collator(2, 6, window_length=4)
    batch = windowed([example, short])
    assert batch["input_ids"].shape[1] == 4
    assert (batch["masked"].sum(1) > 0).all()
    found = LOSS.likelihood(model, batch)
    assert found.num_tokens.tolist() == [7, 3]
    whole = collator(2, 6)([example, short])
    expected = torch.zeros(2, dtype=torch.float64)
    for row in range(12):
        for block in range(4):
            start = max(0, 2 * block - 2)
            cells = slice(start, min(2 * block + 2, 7))
            masked = whole["masked"][row, cells].clone()
            masked[: 2 * block - start] = False
            ids = whole["target_ids"][row, cells][whole["cell_blocks"][row, cells] > 0]
            own = masked[: len(ids)]
            if not own.any():
                continue
            scored = BD3LMCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, block_length=2)
            clean = {"seed": 0, "target_ids": ids} | ({"prompt_ids": prompt} if row < 6 else {})
            alone = scored([clean])
            row_of_cell, column = own.unsqueeze(0).nonzero(as_tuple=True)
            size = 2 * block - start
            weight = (len(ids) - size) / int(own.sum())
            alone["input_ids"] = alone["target_ids"].masked_fill(own, MASK)
            alone["masked"], alone["masked_row"], alone["masked_column"] = own[None], row_of_cell, column
            alone["masked_level"] = torch.zeros_like(column)
            alone["weight"] = torch.full((len(column),), weight, dtype=torch.float64)
            expected[row // 6] += LOSS(model, alone).loss_sum.detach() / 6
    torch.testing.assert_close(found.nll.detach(), expected, rtol=1e-10, atol=0)


def test_a_window_of_half_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window_length must be None or a multiple of block_length=4"):
        collator(4, window_length=6)


def test_the_time_noise_has_the_same_expectation() -> None:
    """The mean of the training loss over seeds, whatever the number of rows; it varies more."""
    model, number = network(), 6000
    expected = bound(model.prediction(2), (FIRST, FIRST + 1) * 2, 2)
    spread: list[float] = []
    time: dict[str, Any] = {"noise": "time", "schedule": LogLinear(0.0), "min_time": 0.0}
    for options in ({}, time):
        collate = BD3LMCollator(mask_id=MASK, pad_id=PAD, bos_id=BOS, eos_id=EOS, block_length=2, **options)
        batch = collate(examples(number))
        entropy = LOSS.likelihood(
            model, {**batch, "num_draws": torch.tensor(1), "is_exact": torch.tensor(False)}
        )
        spread.append(float(entropy.nll.std()))
        assert float(entropy.nll.mean()) == pytest.approx(expected, abs=4 * spread[-1] / math.sqrt(number))
    assert spread[0] < spread[1]
