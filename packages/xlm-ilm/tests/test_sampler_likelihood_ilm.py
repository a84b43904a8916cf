"""The likelihood of the sampler: the mean weight of guided orders is the probability of each text.

The probabilities are those of the exact distribution, summed over all histories in plain Python. The seeds
are fixed, so no test can fail by chance.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm.modules.records import SamplerLikelihood, Targets
from xlm_ilm import ILMExample, ILMPredictor, ILMPromptCollator

from .exact_distribution import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    START,
    Cell,
    Chain,
    State,
    Text,
    final_distribution,
    network_chain,
    random_network,
    texts,
)
from .test_predictor_ilm import CHAIN, MODEL, filtered, two_stage_filtered, with_stop_temperature

DRAWS = 600
NOTHING: ILMExample = {"seed": 0}


def with_threshold(chain: Chain, threshold: float) -> Chain:
    return Chain(stop=lambda state: float(chain.stop(state) >= threshold), insert=chain.insert)


def score(
    every: list[Text], *, example: ILMExample = NOTHING, max_length: int = 3, draws: int = 1, **options: Any
) -> SamplerLikelihood:
    """Each text with ``DRAWS`` seeds of its own."""
    given: dict[str, Any] = {"stop": "draw", **options}
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, **given)
    ids = torch.full((len(every), max(map(len, every))), PAD)
    for row, text in enumerate(every):
        ids[row, : len(text)] = torch.tensor(text)
    repeated = torch.arange(len(every)).repeat_interleave(DRAWS)
    targets = Targets(ids=ids[repeated], lengths=torch.tensor([len(text) for text in every])[repeated])
    prompts = ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=max_length)
    batch = prompts([example] * len(repeated))
    seeds = torch.arange(len(repeated))
    return predictor.likelihood(MODEL, batch, targets, seeds, num_draws=draws)


def assert_mean_weights(found: SamplerLikelihood, expected: list[float]) -> Tensor:
    """The weights of each text, whose mean is right within 4 standard errors, exactly if all are equal."""
    weights = found.log_weights[0].exp().view(len(expected), DRAWS)
    error = weights.std(1) / math.sqrt(DRAWS)
    difference = (weights.mean(1) - torch.tensor(expected, dtype=torch.float64)).abs()
    assert bool((difference <= 4 * error + 1e-12).all()), difference / error
    # Guided orders vary little, so that the bound on the difference says something.
    assert float(error.sum()) < 0.1
    return weights


@pytest.mark.parametrize(
    ("options", "chain"),
    [
        ({}, CHAIN),
        ({"sampling": "two_stage"}, CHAIN),
        ({"top_p": 1.0}, CHAIN),
        ({"stop_temperature": 3.0}, with_stop_temperature(CHAIN, 3.0)),
        ({"top_k": 3, "temperature": 2.0}, filtered(CHAIN, 3, 2.0)),
        ({"temperature": 0.4}, filtered(CHAIN, 100, 0.4)),
        ({"sampling": "two_stage", "slot_top_k": 1, "temperature": 0.5}, two_stage_filtered(CHAIN)),
        ({"insertions_per_step": 2}, CHAIN),
        ({"insertions_per_step": 3, "max_new_tokens": 2}, CHAIN),
        ({"stop": "threshold", "stop_threshold": 0.3}, with_threshold(CHAIN, 0.3)),
        (
            {"stop": "threshold", "stop_threshold": 0.3, "insertions_per_step": 2},
            with_threshold(CHAIN, 0.3),
        ),
    ],
)
def test_the_mean_weight_is_the_probability(options: dict[str, Any], chain: Chain) -> None:
    every = texts(2, 3)
    limit, insertions = options.get("max_new_tokens", 3), options.get("insertions_per_step", 1)
    distribution = final_distribution(chain, START, limit, insertions)
    expected = [distribution.get(text, 0.0) for text in every]
    found = score(every, **options)
    weights = assert_mean_weights(found, expected)
    impossible = torch.tensor(expected) == 0
    assert bool((weights == 0).all(1)[impossible].all())
    assert (found.nll_kind, found.models_length) == ("bound", True)
    assert found.num_tokens.view(-1, DRAWS)[:, 0].tolist() == [len(text) for text in every]
    if options.get("stop") == "threshold":
        assert float(found.smallest_gap.amin()) > 1e-3
        assert bool(impossible.any())
    else:
        assert bool(found.smallest_gap.isinf().all())


def test_given_tokens_are_conditions_and_their_places_are_drawn_if_there_are_several() -> None:
    """Given is 4 with slots on both sides, so that 4 can be any of several in the text."""
    example: ILMExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3]),
        "fixed": torch.tensor([False, True, False]),
    }
    start: State = (Cell(BOS, True), Cell(4, True))
    distribution = final_distribution(network_chain(MODEL, 2), start, 2)
    every = [text for text in texts(2, 3) if 4 in text]
    found = score(every, example=example)
    assert_mean_weights(found, [distribution.get(text, 0.0) for text in every])
    assert sum(distribution.values()) == pytest.approx(1.0)
    assert set(every) == set(distribution)
    with pytest.raises(ValueError, match="target 0 does not hold the given tokens of its row"):
        score([(3, 3)], example=example)


def test_a_closed_slot_binds_its_neighbours() -> None:
    example: ILMExample = {
        "seed": 0,
        "target_ids": torch.tensor([3, 4, 3, 4]),
        "fixed": torch.tensor([True, True, False, True]),
    }
    start: State = (Cell(BOS, False), Cell(3, False), Cell(4, True), Cell(4, False))
    distribution = final_distribution(network_chain(MODEL, 2), start, 2)
    every = list(distribution)
    found = score(every, example=example, max_length=5)
    assert_mean_weights(found, [distribution[text] for text in every])
    for text in ((4, 3, 4, 4), (3, 3, 4, 4), (3, 4, 4, 3)):
        with pytest.raises(ValueError, match="does not hold the given tokens"):
            score([text], example=example, max_length=5)


def test_more_draws_tighten_the_bound_and_never_pass_the_exact_value() -> None:
    every = [(3, 4, 4), (4, 3, 4)]
    distribution = final_distribution(CHAIN, START, 3)
    exact = torch.tensor([-math.log(distribution[text]) for text in every], dtype=torch.float64)
    means = [score(every, draws=draws).nll.view(2, DRAWS).mean(1) for draws in (1, 2, 4)]
    for worse, better in ((means[0], means[1]), (means[1], means[2]), (means[2], exact)):
        assert bool((worse > better).all())


def test_a_network_whose_prompt_is_read_once_scores_the_same_way() -> None:
    model = random_network(2, seed=5, prompt_sees_target=False)
    distribution = final_distribution(network_chain(model, 2, (4, 3, 3)), START, 2)
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw")
    prompts = ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=2)
    example: ILMExample = {"seed": 0, "prompt_ids": torch.tensor([4, 3, 3])}
    batch = prompts([example] * 3)
    targets = Targets(ids=torch.tensor([[0, 0], [3, 0], [4, 0]]), lengths=torch.tensor([0, 1, 1]))
    found = predictor.likelihood(model, batch, targets, torch.arange(3)).nll.neg().exp()
    expected = [distribution[()], distribution[(3,)], distribution[(4,)]]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
