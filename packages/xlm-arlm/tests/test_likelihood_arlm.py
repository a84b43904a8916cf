"""Proves, with x_n = EOS and x ranging over all targets after a prompt,

    -log p(x | prompt) = sum_{i=1}^{n} -log p(x_i | prompt, x_1, ..., x_{i-1}),    sum_x p(x | prompt) = 1:

the chain rule is exact for any network, and every factor is a distribution, so that what has not ended at a
length has the rest of the mass (neural language models in this form: Bengio et al. 2003, JMLR 3).
"""

import math

import numpy as np
import pytest
import torch

from xlm_arlm import ARLM, ARLMCollator, ARLMLoss

from .plain_distribution import BOS, EOS, example, log_prob, make_model, next_log_probs, texts


def test_nll_is_the_chain_rule(model: ARLM, collate: ARLMCollator) -> None:
    batch = collate([example([7, 8], prompt=[9, 10]), example([10, 9, 9, 7]), example([], prompt=[8])])
    # The training objective does not matter.
    output = ARLMLoss(loss_on_prompt=True).likelihood(model, batch)
    expected = [
        -log_prob(model, [9, 10, BOS], [7, 8, EOS]),
        -log_prob(model, [BOS], [10, 9, 9, 7, EOS]),
        -log_prob(model, [8, BOS], [EOS]),
    ]
    assert output.nll.tolist() == pytest.approx(expected, rel=1e-12)
    assert output.num_tokens.tolist() == [2, 4, 0]
    assert (output.nll_kind, output.num_draws, output.models_length) == ("exact", 1, True)


def test_fixed_tokens_are_conditions(model: ARLM, collate: ARLMCollator) -> None:
    batch = collate([example([7, 8, 9], num_fixed=2), example([7, 8, 9], num_fixed=3), example([7, 8, 9])])
    output = ARLMLoss().likelihood(model, batch)
    assert output.num_tokens.tolist() == [1, 0, 3]
    given_two, given_all, nothing_given = output.nll.tolist()
    assert given_two == pytest.approx(nothing_given + log_prob(model, [BOS], [7, 8]), rel=1e-12)
    assert given_all == pytest.approx(-log_prob(model, [BOS, 7, 8, 9], [EOS]), rel=1e-12)


@pytest.mark.parametrize("prompt", [(), (4, 1, 4)])
def test_probabilities_of_all_targets_add_up_to_one(prompt: tuple[int, ...]) -> None:
    """Every target of at most 3 tokens, over every id but EOS, and the mass of what is longer."""
    vocab_size, longest = 5, 3
    model = make_model(vocab_size=vocab_size)
    collate = ARLMCollator(pad_id=0, bos_id=4, eos_id=3)
    alphabet = [token for token in range(vocab_size) if token != 3]
    targets = list(texts(alphabet, longest))
    with torch.no_grad():
        output = ARLMLoss().likelihood(model, collate([example(text, prompt=prompt) for text in targets]))
    mass = float(output.nll.neg().exp().sum())
    full = [text for text in targets if len(text) == longest]
    not_ended = 0.0
    for text in full:
        ends = math.exp(float(next_log_probs(model, [*prompt, 4, *text])[3]))
        not_ended += math.exp(log_prob(model, [*prompt, 4], text)) * (1 - ends)
    assert 0.1 < mass < 0.999, "a mass near 0 or 1 would show little"
    assert mass + not_ended == pytest.approx(1.0, abs=1e-12)


class EndsAtLatest(torch.nn.Module):
    """A network that predicts EOS with certainty after ``longest`` target tokens, for rows without prompt."""

    def __init__(self, model: ARLM, longest: int) -> None:
        super().__init__()
        self.model = model
        self.longest = longest

    def forward(
        self,
        input_ids: torch.Tensor,
        *arguments: object,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        logits = self.model(input_ids, *arguments, positions=positions)
        at_limit = positions % input_ids.shape[1] == self.longest
        certain = torch.full_like(logits[0], -math.inf)
        certain[3] = 0.0
        return torch.where(at_limit.unsqueeze(1), certain, logits)


def test_probabilities_of_all_targets_up_to_a_length_add_up_to_one() -> None:
    model = EndsAtLatest(make_model(vocab_size=5), longest=3)
    collate = ARLMCollator(pad_id=0, bos_id=4, eos_id=3)
    batch = collate([example(text) for text in texts([0, 1, 2, 4], 3)])
    with torch.no_grad():
        nll = ARLMLoss().likelihood(model, batch).nll
    assert float(nll.neg().exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_nll_of_a_bfloat16_network_is_summed_in_float64(collate: ARLMCollator) -> None:
    model = make_model().to(torch.bfloat16)
    generator = np.random.default_rng(0)
    target = generator.integers(7, 11, 300).tolist()
    nll = ARLMLoss().likelihood(model, collate([example(target)])).nll
    with torch.no_grad():
        ids = torch.tensor([[BOS, *target, EOS]])
        logits = model(ids[:, :-1])[0].to(torch.float64)
    expected = (logits.logsumexp(-1) - logits.gather(1, ids[0, 1:, None]).squeeze(1)).sum()
    assert nll.dtype == torch.float64
    torch.testing.assert_close(nll[0], expected, rtol=1e-6, atol=0)
