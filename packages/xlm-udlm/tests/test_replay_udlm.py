"""The likelihood of a sampler against the exact distribution of its chain."""

import pytest
import torch
from torch import Tensor

from xlm.modules.records import Event, Targets
from xlm_udlm import UDLMPredictor, UDLMSampler

from .exact_udlm import as_array, entropy, leave_one_out, random_data
from .networks_udlm import (
    BOS,
    FIRST,
    LENGTH,
    LINE,
    PAD,
    AsNetwork,
    K,
    as_distribution,
    chain,
    predictor,
    prompt_batch,
    standard_error,
    table_prediction,
)

LIKELIHOODS = [
    UDLMSampler(num_steps=3),
    UDLMSampler("psi_constant", num_steps=3, eta=0.4),
    UDLMSampler("psi_rescale", num_steps=4, eta=0.9, hold_alpha=0.6, final="greedy"),
]


@pytest.mark.parametrize("sampler", LIKELIHOODS, ids=lambda sampler: sampler.rule)
def test_mean_weights_of_replays_are_the_probabilities_of_texts(sampler: UDLMSampler) -> None:
    predict, rows = table_prediction(LENGTH, K, seed=2), 2500
    exact = as_distribution(chain(predict, sampler.steps(LINE)), LENGTH, K)
    for text in ((0, 1), (2, 2)):
        targets = Targets(ids=FIRST + torch.tensor([text] * rows), lengths=torch.full((rows,), LENGTH))
        found = predictor(sampler).likelihood(
            AsNetwork(predict, K), prompt_batch(rows, LENGTH), targets, torch.arange(rows), num_draws=2
        )
        weights = found.log_weights.exp().flatten()
        assert float(weights.mean()) == pytest.approx(exact[text], abs=4 * standard_error(weights))
        assert standard_error(weights) < 0.05 * exact[text], "too few draws"
        assert (found.nll_kind, found.num_draws) == ("bound", 2)
        assert found.nfe.tolist() == [2 * sampler.num_steps] * rows
        assert found.num_tokens.tolist() == [LENGTH] * rows


def test_the_bound_of_one_draw_is_that_of_discrete_time() -> None:
    """With the exact prediction its mean exceeds -log p of the sampler, and falls to the entropy."""
    data = random_data(LENGTH, K, seed=3)
    network, masses = AsNetwork(leave_one_out(data), K), as_array(data)
    means: dict[int, float] = {}
    rows = 900
    texts_drawn = [text for text in data for _ in range(rows // len(data))]
    for num_steps in (2, 16):
        targets = Targets(ids=FIRST + torch.tensor(texts_drawn), lengths=torch.full((rows,), LENGTH))
        found = predictor(UDLMSampler(num_steps=num_steps)).likelihood(
            network, prompt_batch(rows, LENGTH), targets, torch.arange(rows)
        )
        by_text = found.nll.view(len(data), -1).mean(1)
        means[num_steps] = float((by_text * torch.tensor(masses)).sum())
    assert means[2] > means[16] + 0.05
    assert means[16] == pytest.approx(entropy(data), abs=0.2)


def test_texts_that_end_are_scored_up_to_their_end() -> None:
    """p(text) sums over the tokens that end it and over all that stands behind; p(cells) does not."""
    k, eos, rows = 2, FIRST + 2, 3000
    predict = table_prediction(LENGTH, k + 2, seed=6)

    class WithEnds(AsNetwork):
        """Tokens in the order FIRST, FIRST + 1, EOS, PAD of the enumeration."""

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None, noise: Tensor, *, positions: Tensor
        ) -> Tensor:
            moved = input_ids.where(input_ids != PAD, FIRST + 3)
            logits = super().forward(moved, attention_mask, noise, positions=positions)
            return torch.cat([logits[:, FIRST + 3 :], logits[:, 1 : FIRST + 3]], dim=1)

    network, sampler = WithEnds(predict, k + 2), UDLMSampler(num_steps=3)
    batch = prompt_batch(rows, LENGTH)
    batch["may_end"] = batch["free"]
    sample = UDLMPredictor(
        schedule=LINE, sampler=sampler, vocab_size=FIRST + 3, pad_id=PAD, eos_id=eos, suppressed_ids=[BOS]
    )
    exact = as_distribution(chain(predict, sampler.steps(LINE), LENGTH, k + 2), LENGTH, k + 2)
    of_text = sum(mass for cells, mass in exact.items() if cells[0] == 1 and cells[1] in (2, 3))
    cases: list[tuple[Event, float]] = [("text", of_text), ("cells", exact[1, 2])]
    for event, expected in cases:
        targets = Targets(ids=torch.full((rows, 1), FIRST + 1), lengths=torch.ones(rows, dtype=torch.int64))
        likelihood = sample.likelihood(network, batch, targets, torch.arange(rows), event=event)
        weights = likelihood.log_weights.exp()[0]
        assert float(weights.mean()) == pytest.approx(expected, abs=4 * standard_error(weights)), event
        assert standard_error(weights) < 0.05 * expected
    empty = Targets(ids=torch.zeros(rows, 0, dtype=torch.int64), lengths=torch.zeros(rows, dtype=torch.int64))
    weights = sample.likelihood(network, batch, empty, torch.arange(rows)).log_weights.exp()[0]
    expected = sum(mass for cells, mass in exact.items() if cells[0] in (2, 3))
    assert float(weights.mean()) == pytest.approx(expected, abs=4 * standard_error(weights))


def test_texts_that_cannot_be_written_have_no_probability() -> None:
    network, sample = AsNetwork(table_prediction(LENGTH, K, seed=2), K), predictor(UDLMSampler(num_steps=2))
    ids = torch.tensor([[FIRST, FIRST, FIRST], [FIRST, PAD, 0], [FIRST, FIRST + 1, 0]])
    targets = Targets(ids=ids, lengths=torch.tensor([3, 2, 2]))
    found = sample.likelihood(network, prompt_batch(3, LENGTH), targets, torch.arange(3))
    assert found.nll.isfinite().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="gibbs_moves has no likelihood: set gibbs_moves=0"):
        predictor(UDLMSampler(num_steps=2, gibbs_moves=1)).likelihood(
            network, prompt_batch(3, LENGTH), targets, torch.arange(3)
        )
    batch = prompt_batch(3, LENGTH)
    batch["free"] = batch["free"].clone()
    batch["free"][:, 1] = False
    batch["input_ids"][:, 1] = FIRST + 2
    with pytest.raises(ValueError, match="target 0 differs from the given token at position 0"):
        sample.likelihood(network, batch, targets, torch.arange(3))
