"""The likelihood of the sampler: the mean weight of all plans is the probability of the paths they follow."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from xlm.modules.records import Targets
from xlm_editflow import EditFlowExample, EditFlowPredictor, EditFlowPromptCollator, Prompt
from xlm_editflow.replay_editflow import Forced

from .exact_editflow import (
    BOS,
    FIRST,
    PAD,
    SPECIAL,
    Text,
    generated,
    random_network,
    rates_of,
    texts,
)
from .exact_steps_editflow import generated_in_steps
from .test_predictor_editflow import sharpened

LIMIT = 3
EVERY = texts(2, LIMIT)
A, B = FIRST, FIRST + 1
INSERTIONS = random_network(2, seed=11, only_insertions=True)
EDITS = random_network(2, seed=12)
FREE = rates_of(INSERTIONS, 2, LIMIT)
with torch.no_grad():
    EDITS.operation_head.bias[0] -= 2.5  # so that no slot takes a token for certain


def targets_of(every: list[Text]) -> Targets:
    ids = torch.full((len(every), max(map(len, every))), PAD)
    for row, text in enumerate(every):
        ids[row, : len(text)] = torch.tensor(text)
    return Targets(ids=ids, lengths=torch.tensor([len(text) for text in every]))


def over_all_plans(model: nn.Module, text: Text, num_steps: int, source: Text = (), **options: Any) -> float:
    """The mean weight over all assignments of the edits to steps."""
    example: EditFlowExample = {"seed": 0, "prompt_ids": torch.tensor([*source], dtype=torch.int64)}
    collate = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=LIMIT, source=Prompt())
    most = max(len(text), len(source))
    plans = list(itertools.product(range(num_steps), repeat=most))
    targets = targets_of([text] * len(plans))
    is_poisson = options.get("insertions") == "poisson"
    batch, seeds = collate([example] * len(plans)), torch.arange(len(plans))
    forced = Forced.start(batch, targets, seeds, num_steps=num_steps, alignment="left", is_poisson=is_poisson)
    moments = torch.tensor(
        [[1 - (step + 0.5) / num_steps for step in plan] for plan in plans], dtype=torch.float64
    )
    forced.times = torch.where(forced.z0 != forced.z1, moments.view(len(plans), most), 0.0)
    predictor = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, num_steps=num_steps, **options)
    with torch.no_grad():
        predictor.run(model, batch, seeds, forced)
    return float(forced.finish().exp().mean())


@pytest.mark.parametrize("options", [{}, {"insertions": "poisson"}, {"temperature": 0.4}])
def test_without_detours_the_mean_weight_is_the_probability(options: dict[str, Any]) -> None:
    rates = sharpened(FREE, options.get("temperature", 1.0))
    is_poisson = options.get("insertions") == "poisson"
    exact = generated_in_steps(rates, {(): 1.0}, 2, LIMIT, is_poisson=is_poisson)
    for text in EVERY:
        expected = exact.get(text, 0.0)
        assert over_all_plans(INSERTIONS, text, 2, **options) == pytest.approx(expected, rel=1e-7), text


def test_with_detours_it_is_below() -> None:
    """Of a single step there is no detour: each plan is one path, whatever the edits."""
    for source in [(A,), (B, A)]:
        rates = rates_of(EDITS, 2, LIMIT, prompt=source)
        one, three = (generated_in_steps(rates, {source: 1.0}, number, LIMIT) for number in (1, 3))
        for text in [(), (A,), (B, A), (A, B, A)]:
            assert over_all_plans(EDITS, text, 1, source) <= one[text] * (1 + 1e-7)
            assert over_all_plans(EDITS, text, 3, source) < three[text]
    # Left aligned, of one token: substituted by the other, or deleted; nothing else leads there in one step.
    rates = rates_of(EDITS, 2, LIMIT, prompt=(A,))
    exact = generated_in_steps(rates, {(A,): 1.0}, 1, LIMIT)
    assert over_all_plans(EDITS, (), 1, (A,)) == pytest.approx(exact[()], rel=1e-7)


def score(
    every: list[Text], example: EditFlowExample, draws: int = 150, **options: Any
) -> list[tuple[float, float]]:
    """Mean weight and its standard error of each text."""
    collate = EditFlowPromptCollator(pad_id=PAD, bos_id=BOS, max_length=LIMIT)
    repeated = targets_of([text for text in every for _ in range(draws)])
    batch, seeds = collate([example] * len(repeated.lengths)), torch.arange(len(repeated.lengths))
    predictor = EditFlowPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **options)
    found = predictor.likelihood(INSERTIONS, batch, repeated, seeds)
    assert (found.nll_kind, found.models_length) == ("bound", True)
    weights = found.log_weights[0].exp().view(len(every), draws)
    return list(zip(weights.mean(1).tolist(), (weights.std(1) / math.sqrt(draws)).tolist(), strict=True))


def test_first_hitting_has_the_probability_of_the_matrix_exponential() -> None:
    exact = generated(FREE, EVERY, {(): 1.0})
    found = score(EVERY, {"seed": 0}, num_steps=None, num_points=16)
    for text, (mean, error) in zip(EVERY, found, strict=True):
        assert mean == pytest.approx(exact[text], abs=4 * error + 1e-3), text
    assert sum(error for _, error in found) < 0.15


def test_given_tokens_are_conditions_and_their_places_are_drawn_if_there_are_several() -> None:
    example: EditFlowExample = {
        "seed": 0,
        "target_ids": torch.tensor([A, B, A]),
        "fixed": torch.tensor([False, True, False]),
    }
    every = [text for text in EVERY if B in text]
    # All texts that hold the given token, and nothing else, can be written.
    found = score(every, example, num_steps=1)
    error = math.hypot(*(error for _, error in found))
    assert error < 0.1
    assert sum(mean for mean, _ in found) == pytest.approx(1.0, abs=3 * error)
    with pytest.raises(ValueError, match="target 0 does not hold the given tokens of its row"):
        score([(A, A)], example)


def test_texts_beyond_the_limit_are_impossible() -> None:
    long = (A, B, A, B)
    for num_steps in (2, None):
        assert score([long], {"seed": 0}, draws=5, num_steps=num_steps) == [(0.0, 0.0)]


def test_corrections_have_no_likelihood() -> None:
    with pytest.raises(ValueError, match="correction must be 0 for a likelihood of the sampler"):
        score([(A,)], {"seed": 0}, draws=2, num_steps=2, correction=0.5)
