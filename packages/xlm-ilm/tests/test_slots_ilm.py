"""Ranked slots: their distribution and likelihood by enumeration, what they save, what is refused."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from xlm.modules.testing import to_list
from xlm_ilm import ILMExample, ILMPredictor, ILMPromptCollator

from .exact_distribution import (
    BOS,
    CLS,
    PAD,
    SPECIAL,
    START,
    Text,
    chi_square,
    final_distribution,
    network_chain,
    random_network,
    ranked,
    texts,
)
from .test_sampler_likelihood_ilm import assert_mean_weights, score

ROWS = 4000
NOTHING: ILMExample = {"seed": 0}
MODEL = random_network(2, seed=11)
CHAIN = network_chain(MODEL, 2)
RULES: list[tuple[dict[str, Any], int]] = [
    ({"rank": "top_prob"}, 1),
    ({"rank": "margin", "insertions_per_step": 2}, 2),
    ({"rank": "top_prob", "quota": "threshold", "tau": 0.4}, 0),
    ({"rank": "entropy", "quota": "threshold", "tau": -1.0}, 0),
    ({"rank": "entropy", "quota": "budget", "gamma": 0.7}, 0),
    ({"rank": "margin", "quota": "budget", "gamma": 0.9}, 0),
]
"""Options, and the number of slots where it is fixed."""


def expected(options: dict[str, Any], number: int) -> dict[Text, float]:
    quota = options.get("quota", "count")
    bound: Any = {"count": number, "threshold": options.get("tau"), "budget": options.get("gamma")}[quota]
    return final_distribution(CHAIN, START, 3, 3, ranked(options["rank"], quota, bound))


@pytest.mark.parametrize(("options", "number"), RULES)
def test_texts_follow_the_enumerated_distribution(options: dict[str, Any], number: int) -> None:
    distribution = expected(options, number)
    assert sum(distribution.values()) == pytest.approx(1.0, abs=1e-12)
    predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", **options)
    prompts = ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)([NOTHING] * ROWS)
    prediction = predictor(MODEL, prompts, torch.arange(ROWS))
    lengths = to_list(prediction.lengths)
    found = Counter(tuple(to_list(ids)[:length]) for ids, length in zip(prediction.ids, lengths, strict=True))
    statistic, freedom = chi_square(found, distribution)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    saves = bool((prediction.nfe < prediction.lengths).any())
    assert saves == (options != {"rank": "top_prob"}), "a rule inserts several tokens, and one a token"


@pytest.mark.parametrize(("options", "number"), RULES)
def test_the_mean_weight_is_the_probability(options: dict[str, Any], number: int) -> None:
    every, distribution = texts(2, 3), expected(options, number)
    found = score(every, **options)
    assert_mean_weights(found, [distribution.get(text, 0.0) for text in every])
    # Two slots are the most that there are, so that taking two leaves no choice.
    assert bool(found.smallest_gap.isfinite().any()) == (number != 2)


def test_filters_act_on_tokens_alone() -> None:
    """The same slots, of each the most probable token."""

    def step(insert: dict[tuple[int, int], float], most: int) -> dict[tuple[tuple[int, int], ...], float]:
        best = ranked("top_prob", "threshold", 0.4)(insert, most)
        return {max(best, key=lambda pairs: best[pairs]): 1.0}

    distribution = final_distribution(CHAIN, START, 3, 3, step)
    every = texts(2, 3)
    filters: list[dict[str, Any]] = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}]
    for sampling in filters:
        found = score(every, rank="top_prob", quota="threshold", tau=0.4, **sampling)
        assert_mean_weights(found, [distribution.get(text, 0.0) for text in every])


def test_extreme_constants_insert_one_token_at_a_time() -> None:
    prompts = ILMPromptCollator(pad_id=PAD, cls_id=CLS, bos_id=BOS, max_length=3)([NOTHING] * 50)
    made: list[list[list[int]]] = []
    rules: list[dict[str, Any]] = [
        {},
        {"quota": "threshold", "tau": 0.999},
        {"quota": "budget", "gamma": 0.0},
    ]
    for options in rules:
        predictor = ILMPredictor(pad_id=PAD, suppressed_ids=SPECIAL, stop="draw", rank="margin", **options)
        prediction = predictor(MODEL, prompts, torch.arange(50))
        made.append([to_list(prediction.ids), to_list(prediction.nfe)])
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quota": "threshold"}, "must be count and left out with rank=drawn: the other quotas compare"),
        ({"tau": 0.5}, "must be count and left out with rank=drawn"),
        ({"rank": "random"}, "rank(.|\n)*'?random"),
        ({"rank": "left_to_right"}, "rank(.|\n)*'?left_to_right"),
        ({"rank": "margin", "quota": "hazard"}, "quota(.|\n)*'hazard'"),
        ({"rank": "margin", "quota": "threshold", "insertions_per_step": 2}, "left out with quota=threshold"),
        ({"rank": "margin", "tau": 0.5}, "tau=0.5 has no use with quota="),
        ({"rank": "margin", "quota": "budget", "tau": 0.5}, "tau=0.5 has no use with quota=budget"),
        ({"rank": "entropy", "quota": "threshold"}, "tau must be below 0, in nats, with rank=entropy"),
        ({"rank": "top_prob", "quota": "budget", "gamma": -1.0}, "gamma must be at least 0"),
        ({"rank": "top_prob", "sampling": "two_stage"}, "left out with rank=top_prob, which draws no slot"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    # TypeError where the annotations are checked at run time.
    with pytest.raises((ValueError, TypeError), match=message):
        ILMPredictor(pad_id=PAD, **options)
