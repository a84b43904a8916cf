"""Traces with log-probabilities: they are those of the draws, and their gradient is that of E[R]."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules.records import FullyTracedPrediction
from xlm_ilm import ILM, ILMExample, ILMLoss, ILMOutput, ILMPredictor, ILMPromptBatch, ILMPromptCollator
from xlm_ilm.insertion_ilm import Pairs
from xlm_ilm.insertion_ilm import Text as Rows

from .exact_distribution import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    Text,
    all_drops,
    batch_of,
    random_network,
    texts,
)

TOKENS = (3, 4)
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"top_k": 3, "temperature": 0.7},
    {"insertions_per_step": 2},
    {"rank": "margin", "quota": "threshold", "tau": 0.3},
]


def predictor_of(options: dict[str, Any]) -> ILMPredictor:
    return ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", **options)


def prompts(rows: int, max_length: int) -> ILMPromptBatch:
    nothing: ILMExample = {"seed": 0}
    return ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=max_length)([nothing] * rows)


def per_row(written: FullyTracedPrediction, log_prob: Tensor, places: Tensor) -> Tensor:
    """(rows,) nats of each trajectory."""
    return places.index_add(0, written.trace.row, log_prob)


@pytest.mark.parametrize("options", SAMPLERS)
def test_a_full_trace_is_scored_as_it_was_recorded(options: dict[str, Any]) -> None:
    model, batch, seeds = random_network(2, seed=11), prompts(60, 4), torch.arange(60)
    predict = predictor_of(options)
    plain, written = predict(model, batch, seeds), predict(model, batch, seeds, trace="full")
    assert torch.equal(plain.ids, written.ids)
    trace = written.trace
    assert bool((trace.log_prob < 0).all())
    assert len(trace.log_prob) == int(written.lengths.sum())
    with torch.no_grad():
        again = predict.trajectory_log_probs(model, batch, trace, seeds)
    assert torch.equal(again.log_prob, trace.log_prob)
    assert torch.equal(again.place_log_prob, trace.place_log_prob)
    # Given tokens are edits of step 0, which are not drawn.
    example: ILMExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    collate = ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)
    given = predict(model, collate([example] * 3), torch.arange(3), trace="full").trace
    assert given.log_prob[given.step == 0].tolist() == [0.0] * 3
    assert bool((given.log_prob[given.step > 0] < 0).all())


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"sampling": "two_stage", "temperature": 0.5}, {"rank": "margin"}]
)
def test_the_entropy_of_an_edit_is_that_of_all_edits_that_could_be(options: dict[str, Any]) -> None:
    model, rows = random_network(2, seed=11), 400
    trace = predictor_of(options)(model, prompts(rows, 2), torch.arange(rows), trace="full").trace
    after_three = set(trace.row[(trace.step == 1) & (trace.token == 3)].tolist())
    found: dict[tuple[int, int], tuple[float, float]] = {}
    columns = (trace.step, trace.row, trace.position, trace.token, trace.log_prob, trace.entropy)
    for step, row, position, token, *nats in zip(*(column.tolist() for column in columns), strict=True):
        if step == 2 and row in after_three:
            found[position, token] = (nats[0], nats[1])
    assert sum(math.exp(log_prob) for log_prob, _ in found.values()) == pytest.approx(1.0, abs=1e-6)
    entropy = -sum(math.exp(log_prob) * log_prob for log_prob, _ in found.values())
    assert [nats for _, nats in found.values()] == [pytest.approx(entropy, abs=1e-6)] * len(found)


def test_a_threshold_makes_stops_certain() -> None:
    model, batch, seeds = random_network(2, seed=11), prompts(20, 4), torch.arange(20)
    predict = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop_threshold=0.3)
    trace = predict(model, batch, seeds, trace="full").trace
    assert trace.place_log_prob.tolist() == [0.0] * 20


def test_a_trace_of_another_sampler_is_refused() -> None:
    model, batch, seeds = random_network(2, seed=11), prompts(20, 4), torch.arange(20)
    trace = predictor_of({"insertions_per_step": 2})(model, batch, seeds, trace=True).trace
    for options in ({}, {"rank": "margin"}, {"max_new_tokens": 1}):
        with pytest.raises(ValueError, match="the trace is not one of this sampler"):
            predictor_of(options).trajectory_log_probs(model, batch, trace, seeds)


def value(model: ILM, reward: Callable[[Text], float], options: dict[str, Any], text: Text = ()) -> Tensor:
    """E[R] of texts of at most two tokens, a sum over all histories with gradient."""
    if len(text) == 2:
        return torch.tensor(reward(text), dtype=torch.float64)
    output: ILMOutput = model(torch.tensor([[CLS, BOS, *text]]))
    logits = output.token_logits[0, 1:, 3:]
    stop = output.stop_logits[0].softmax(-1)[0]
    going_on = torch.zeros((), dtype=torch.float64)
    if "rank" in options:
        chances = logits.softmax(-1)
        share = logits.logsumexp(-1).softmax(-1)
        ordered = chances.sort(descending=True).values
        scores = ((ordered[:, 0] - ordered[:, 1]) * share / share.max()).tolist()
        order = torch.tensor(scores).argsort(descending=True, stable=True).tolist()
        taken = order[: min(max(sum(score > options["tau"] for score in scores), 1), 2 - len(text))]
        for tokens in itertools.product(range(2), repeat=len(taken)):
            after = list(text)
            for slot, token in sorted(zip(taken, tokens, strict=True), reverse=True):
                after.insert(slot, TOKENS[token])
            chance = torch.stack([chances[slot, token] for slot, token in zip(taken, tokens, strict=True)])
            going_on = going_on + chance.prod() * value(model, reward, options, tuple(after))
    else:
        pairs = logits.flatten()
        if "top_k" in options:
            kept = pairs >= pairs.topk(min(options["top_k"], len(pairs))).values[-1]
            pairs = (pairs / options["temperature"]).masked_fill(~kept, -math.inf)
        for number, chance in enumerate(pairs.softmax(-1)):
            slot, token = divmod(number, 2)
            after = (*text[:slot], TOKENS[token], *text[slot:])
            going_on = going_on + chance * value(model, reward, options, after)
    return stop * reward(text) + (1 - stop) * going_on


@pytest.mark.parametrize("options", [SAMPLERS[0], SAMPLERS[1], SAMPLERS[3]])
def test_the_gradient_of_trajectories_is_that_of_the_expected_reward(options: dict[str, Any]) -> None:
    """Over all trajectories, each with its probability; E grad log p is 0."""
    rows = 6000
    model, batch, seeds = random_network(2, seed=11), prompts(rows, 2), torch.arange(rows)
    written = predictor_of(options)(model, batch, seeds, trace="full")
    trace = written.trace
    keys: dict[tuple[tuple[int, ...], ...], int] = {}
    edits = torch.stack([trace.row, trace.step, trace.position, trace.token], 1).tolist()
    by_row: list[list[tuple[int, ...]]] = [[] for _ in range(rows)]
    for row, *edit in edits:
        by_row[row].append(tuple(edit))
    for row, history in enumerate(by_row):
        keys.setdefault(tuple(history), row)
    first = torch.tensor(list(keys.values()))

    found = predictor_of(options).trajectory_log_probs(model, batch, trace, seeds)
    log_p = per_row(written, found.log_prob, found.place_log_prob)[first]
    assert float(log_p.detach().exp().sum()) == pytest.approx(1.0, abs=1e-12), "every trajectory is there"
    every = texts(2, 2)
    rewards = dict(zip(every, torch.linspace(-1, 2, len(every)).tolist(), strict=True))
    lengths = written.lengths.tolist()
    ids = written.ids.tolist()
    reward = torch.tensor([rewards[tuple(ids[row][: lengths[row]])] for row in first.tolist()])
    weights = log_p.detach().exp() * reward.double()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad((weights * log_p).sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(value(model, rewards.__getitem__, options), parameters, allow_unused=True)
    assert max(float(part.abs().max()) for part in expected) > 1e-3
    for mine, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    nothing = torch.autograd.grad((log_p.detach().exp() * log_p).sum(), parameters)
    assert all(bool((part.abs() < 1e-9).all()) for part in nothing)


class InOrder:
    """Inserts the tokens of a text in an order given beforehand, one per evaluation, with the weight of it.

    The order is uniform among all: the probability of a pair is divided by 1 / |C|, where C are the
    missing tokens.
    """

    def __init__(self, text: Text, order: tuple[int, ...]) -> None:
        self.text, self.order, self.number = text, order, 0
        self.log_weight = torch.zeros((), dtype=torch.float64)

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        complete = torch.tensor([self.number == len(self.text)])
        self.log_weight = self.log_weight + torch.where(complete, chance, 1 - chance).log().sum()
        return complete

    def choose(
        self, text: Rows, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        place = self.order[self.number]
        on_left = sum(other < place for other in self.order[: self.number])
        position = text.position_ids[rows].gather(1, pairs.cells.column)
        slot = (position == text.target_start[rows] - 1 + on_left).byte().argmax(1)
        token = torch.tensor([self.text[place]])
        num_missing = len(self.text) - self.number
        log_prob = pairs.score(able, free, torch.zeros(1, dtype=torch.int64), slot, token)
        self.log_weight = self.log_weight + log_prob.sum() + math.log(num_missing)
        self.number += 1
        return slot, token

    def note_gap(self, rows: Tensor, gap: Callable[[], Tensor], /) -> None:
        raise AssertionError


@torch.no_grad()
def test_a_uniform_order_has_the_expectation_of_the_bound() -> None:
    """E nll_1 of the sampler with unguided orders is the bound of the loss; guided ones are tighter."""
    model, predict = random_network(2, seed=1), predictor_of({})
    for text in ((), (3,), (4, 3), (3, 4, 4), (4, 3, 3, 4)):
        drops = all_drops(text)
        nll = ILMLoss(suppressed_ids=SPECIAL).likelihood(model, batch_of(drops, [len(text)] * len(drops))).nll
        bound = float(nll @ torch.tensor([drop.probability for drop in drops], dtype=torch.float64))
        weights: list[float] = []
        for order in itertools.permutations(range(len(text))):
            insertions = InOrder(text, order)
            predict._generate(model, prompts(1, 5), torch.zeros(1, dtype=torch.int64), insertions)  # pyright: ignore[reportPrivateUsage]  # with orders of the test
            weights.append(-float(insertions.log_weight))
        assert sum(weights) / len(weights) == pytest.approx(bound, rel=1e-12)


def test_places_are_part_of_the_probability() -> None:
    """Of all texts: the probabilities of all trajectories, summed by text, are those of the texts."""
    model, rows = random_network(2, seed=11), 3000
    written = predictor_of({})(model, prompts(rows, 1), torch.arange(rows), trace="full")
    log_p = per_row(written, written.trace.log_prob, written.trace.place_log_prob)
    by_text = {tuple(ids[:length]): float(value) for ids, length, value in zip(
        written.ids.tolist(), written.lengths.tolist(), log_p.exp(), strict=True)}  # fmt: skip
    assert sum(by_text.values()) == pytest.approx(1.0, abs=1e-12)
