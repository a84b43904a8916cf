"""Proves, with x_n = EOS and x ranging over all targets after a prompt,

    -log p(x | prompt) = sum_{i=1}^{n} -log p(x_i | prompt, x_1, ..., x_{i-1}),    sum_x p(x | prompt) = 1:

the chain rule is exact for any network, and every factor is a distribution, so that what has not ended at a
length has the rest of the mass (neural language models in this form: Bengio et al. 2003, JMLR 3). The
likelihood of the sampler is that of the filtered factors, by enumeration, and the gradient of a trajectory
that of an expected reward.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from xlm.modules import KeyValueCache
from xlm.modules.records import Targets, Trace
from xlm_arlm import ARLM, ARLMCollator, ARLMLoss, ARLMPredictor, ARLMPromptCollator

from .plain_distribution import (
    BOS,
    EOS,
    ORDINARY,
    PAD,
    SUPPRESSED,
    LogProbs,
    Text,
    example,
    log_prob,
    log_softmax,
    make_model,
    next_log_probs,
    texts,
)


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


def test_a_prefix_may_go_on(model: ARLM, collate: ARLMCollator) -> None:
    examples = [example([7, 8, 9], num_fixed=2), example([10, 9], prompt=[9]), example([], prompt=[8])]
    without_end = ARLMCollator(pad_id=PAD, bos_id=BOS, eos_id=None)
    for collator in (collate, without_end):
        found = ARLMLoss().prefix_likelihood(model, collator(examples))
        expected = [-log_prob(model, [BOS, 7, 8], [9]), -log_prob(model, [9, BOS], [10, 9]), 0.0]
        assert found.nll.tolist() == pytest.approx(expected, rel=1e-12)
        assert found.num_tokens.tolist() == [1, 2, 0]
        assert (found.nll_kind, found.num_draws, found.models_length) == ("exact", 1, False)


def test_a_prefix_is_greedy_if_every_token_is_the_most_probable_one(
    model: ARLM, collate: ARLMCollator
) -> None:
    best: list[int] = []
    for _ in range(3):
        best.append(int(next_log_probs(model, [BOS, *best]).argmax()))
    wrong = [*best[:2], (best[2] + 1) % 3 + 7]
    batch = collate([example(best), example(wrong), example(best[:1]), example([])])
    assert wrong != best
    found = ARLMLoss().prefix_likelihood(model, batch).is_greedy
    assert found.tolist() == [True, False, True, True]


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


FILTERS = [
    (1.0, None, None),
    (0.7, None, None),
    (1.0, 3, None),
    (1.0, None, 0.7),
    (1.3, 4, 0.9),
    (0.0, None, None),
]
Filters = tuple[float, int | None, float | None]


def targets_of(rows: list[Text]) -> Targets:
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for row, text in enumerate(rows):
        ids[row, : len(text)] = torch.tensor(text)
    return Targets(ids=ids, lengths=torch.tensor([len(text) for text in rows]))


def sampler(filters: Filters, *, limit: int = 3, eos_id: int | None = EOS) -> ARLMPredictor:
    temperature, top_k, top_p = filters
    return ARLMPredictor(
        pad_id=PAD,
        eos_id=eos_id,
        suppressed_ids=SUPPRESSED,
        max_new_tokens=limit,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


def filtered(log_p: LogProbs, filters: Filters) -> LogProbs:
    """The distribution after the filters, by their definitions."""
    temperature, top_k, top_p = filters
    if temperature == 0:
        return np.where(np.arange(len(log_p)) == log_p.argmax(), 1.0, 0.0)
    p = np.exp(log_softmax(log_p / temperature))
    order = np.argsort(-p, kind="stable")[:top_k]
    if top_p is not None:
        order = order[: int(np.searchsorted((p[order] / p[order].sum()).cumsum(), top_p)) + 1]
    kept = np.zeros_like(p)
    kept[order] = p[order] / p[order].sum()
    return kept


def probability(model: ARLM, text: Text, filters: Filters, limit: int) -> float:
    """That the sampler writes ``text`` and ends, or reaches its limit."""
    excluded = [token for token in SUPPRESSED if token != EOS]
    tokens = text if len(text) == limit else (*text, EOS)
    factors = (
        filtered(next_log_probs(model, [8, BOS, *tokens[:end]], excluded), filters)[token]
        for end, token in enumerate(tokens)
    )
    return math.prod(float(factor) for factor in factors)


@pytest.mark.parametrize("filters", FILTERS)
def test_the_likelihood_of_the_sampler_is_that_of_its_filtered_factors(
    model: ARLM, collate_prompts: ARLMPromptCollator, filters: Filters
) -> None:
    every = list(texts(ORDINARY, 3))
    batch = collate_prompts([example(prompt=[8])] * len(every))
    output = sampler(filters).likelihood(model, batch, targets_of(every), torch.arange(len(every)))
    expected = np.array([probability(model, text, filters, 3) for text in every])
    np.testing.assert_allclose(output.nll.neg().exp().numpy(), expected, rtol=1e-10, atol=0)
    assert float(output.nll.neg().exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool(output.nll.isinf().any()) == (filters not in FILTERS[:2])
    assert (output.nll_kind, output.num_draws, output.models_length) == ("exact", 1, True)
    assert output.nfe.tolist() == [1] * len(every)
    assert output.num_tokens.tolist() == [len(text) for text in every]


def test_without_filters_it_is_the_likelihood_of_the_loss(model: ARLM, collate: ARLMCollator) -> None:
    rows = [example([7, 8], prompt=[9, 10]), example([10, 9, 9, 7]), example([], prompt=[8])]
    expected = ARLMLoss().likelihood(model, collate(rows)).nll
    plain = ARLMPredictor(pad_id=PAD, eos_id=EOS)
    batch = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=6)(rows)
    found = plain.likelihood(model, batch, targets_of([(7, 8), (10, 9, 9, 7), ()]), torch.arange(3))
    torch.testing.assert_close(found.nll, expected, rtol=1e-12, atol=0)


def test_impossible_texts_are_counted_as_such(model: ARLM, collate_prompts: ARLMPromptCollator) -> None:
    """Beyond the limit, with a suppressed id, with EOS inside; without EOS, any length below the limit."""
    rows: list[Text] = [(7, 8, 9, 7), (5,), (7, EOS, 8), (7, 8, 9)]
    batch = collate_prompts([example()] * len(rows))
    found = sampler(FILTERS[0]).likelihood(model, batch, targets_of(rows), torch.arange(4)).nll
    assert found.isinf().tolist() == [True, True, True, False]
    blocks = sampler(FILTERS[0], eos_id=None)
    of_blocks = blocks.likelihood(
        model, batch, targets_of([(7, 8), (7, 8, 9), (), (5, 7, 7)]), torch.arange(4)
    )
    assert of_blocks.nll.isinf().tolist() == [True, False, True, True]
    assert not of_blocks.models_length


def test_fixed_tokens_are_conditions_of_the_sampler_too(model: ARLM) -> None:
    rows = [example([7, 8, 9], num_fixed=2), example([7, 8, 9], num_fixed=3), example([7, 8, 9])]
    batch = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=6)(rows)
    plain = ARLMPredictor(pad_id=PAD, eos_id=EOS)
    found = plain.likelihood(model, batch, targets_of([(7, 8, 9)] * 3), torch.arange(3))
    expected = [-log_prob(model, [BOS, 7, 8, 9][: num + 1], [7, 8, 9, EOS][num:]) for num in (2, 3, 0)]
    assert found.nll.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.num_tokens.tolist() == [1, 0, 3]
    for other in ((7, 9, 9), (7,)):
        with pytest.raises(ValueError, match="target 0 does not begin with the 2 fixed tokens of its row"):
            plain.likelihood(model, batch, targets_of([other, (7, 8, 9), ()]), torch.arange(3))


class Bigram(torch.nn.Module):
    """A table network, whose logits are the same in any batch and with any cache."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(11, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.table = torch.nn.Parameter(table)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        positions: torch.Tensor,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        return self.table[input_ids.flatten()[positions]]


@pytest.mark.parametrize("filters", FILTERS)
def test_replay_of_a_generation_is_what_was_recorded_bit_for_bit(filters: Filters) -> None:
    model, writer = Bigram(), sampler(filters, limit=5)
    rows = [example(prompt=[8]), example([7, 9], num_fixed=2), example(prompt=[10, 9])] * 10
    batch = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=6)(rows)
    seeds = torch.arange(30)
    written = writer(model, batch, seeds, trace="full")
    assert torch.equal(written.ids, writer(model, batch, seeds).ids)
    recorded = [0.0] * 30
    for row, log_prob_ in zip(written.trace.row.tolist(), written.trace.log_prob.tolist(), strict=True):
        recorded[row] += log_prob_
    recorded = [
        total + end for total, end in zip(recorded, written.trace.place_log_prob.tolist(), strict=True)
    ]
    texts_ = Targets(ids=written.ids, lengths=written.lengths)
    assert writer.likelihood(model, batch, texts_, seeds).log_weights[0].tolist() == recorded
    replayed = writer.trajectory_log_probs(model, batch, written.trace, seeds)
    assert torch.equal(replayed.log_prob, written.trace.log_prob)
    assert torch.equal(replayed.place_log_prob, written.trace.place_log_prob)


def test_the_entropy_of_an_edit_is_that_of_the_next_token() -> None:
    model, batch = (
        Bigram(),
        ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=6)([example([7, 9], num_fixed=2)] * 20),
    )
    trace = sampler((1.0, None, None), limit=5)(model, batch, torch.arange(20), trace="full").trace
    p = model.table[:, [EOS, *ORDINARY]].softmax(1)
    entropy = -(p * p.log()).sum(1)
    before: dict[int, int] = {}
    for step, row, token, found in zip(
        *(getattr(trace, name).tolist() for name in ("step", "row", "token", "entropy")), strict=True
    ):
        assert found == (pytest.approx(entropy[before[row]].item(), abs=1e-12) if step > 0 else 0.0)
        before[row] = token


@pytest.mark.parametrize("filters", FILTERS[:3])
def test_the_gradient_of_trajectories_is_that_of_the_expected_reward(filters: Filters) -> None:
    """sum_x p(x) R(x) grad log p(x) against autograd through an enumeration of p in plain torch."""
    model, writer = Bigram(), sampler(filters, limit=2)
    every = list(texts(ORDINARY, 2))
    batch = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=2)([example()] * len(every))
    edits = [
        (step, row, 0, step - 1, token)
        for row, text in enumerate(every)
        for step, token in enumerate(text, 1)
    ]
    trace = Trace(*torch.tensor(edits).T)
    found = writer.trajectory_log_probs(model, batch, trace, torch.arange(len(every)))
    log_p = found.place_log_prob.index_add(0, trace.row, found.log_prob)
    reward = torch.linspace(-1, 2, len(every), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((log_p.detach().exp() * reward * log_p).nansum(), model.table)

    temperature, top_k, _ = filters
    allowed = torch.tensor([EOS, *ORDINARY])
    logits = (model.table[:, allowed] / temperature).clone()
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    p = torch.zeros(11, 11, dtype=torch.float64).index_copy(1, allowed, logits.softmax(-1))
    expectation = p.new_zeros(())
    for text, value in zip(every, reward, strict=True):
        path = (BOS, *text, EOS)[: 2 if len(text) == 0 else 3]
        expectation = expectation + value * math.prod(p[a, b] for a, b in itertools.pairwise(path))
    (expected,) = torch.autograd.grad(expectation, model.table)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
