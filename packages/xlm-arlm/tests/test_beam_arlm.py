"""Beam search against exhaustive search, and against its published algorithm in plain Python."""

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch

from xlm.modules.testing import CountingModel, replay, to_list
from xlm_arlm import ARLM, ARLMBeamPredictor, ARLMPredictor, ARLMPromptCollator

from .plain_distribution import (
    BOS,
    EOS,
    ORDINARY,
    PAD,
    SUPPRESSED,
    Text,
    example,
    make_model,
    next_log_probs,
)

PROMPTS: tuple[Text, ...] = ((7, 8, 9, 10, 7), (), (10,), (9, 9, 8), (8, 7))
EXCLUDED = [token for token in SUPPRESSED if token != EOS]


class Hypothesis(NamedTuple):
    tokens: Text
    log_p: float
    ended: bool

    def score(self, length_penalty: float) -> float:
        return self.log_p / ((5 + len(self.tokens) + self.ended) / 6) ** length_penalty


@cache
def all_hypotheses(seed: int, given: Text, limit: int) -> list[Hypothesis]:
    """All targets of a network that end before the limit or are cut there."""
    if limit == 0:
        return [Hypothesis((), 0.0, ended=False)]
    following = next_log_probs(make_model(seed=seed), given, EXCLUDED)
    hypotheses = [Hypothesis((), float(following[EOS]), ended=True)]
    for token in ORDINARY:
        for tokens, log_p, ended in all_hypotheses(seed, (*given, token), limit - 1):
            hypotheses.append(Hypothesis((token, *tokens), float(following[token]) + log_p, ended))
    return hypotheses


def exhaustive(seed: int, given: Text, limit: int, length_penalty: float) -> Text:
    """The best target of all."""
    hypotheses = all_hypotheses(seed, given, limit)
    assert sum(math.exp(hypothesis.log_p) for hypothesis in hypotheses) == pytest.approx(1.0)
    return max(hypotheses, key=lambda hypothesis: hypothesis.score(length_penalty)).tokens


def plain_beam_search(
    model: ARLM, given: list[int], *, num_beams: int, limit: int, length_penalty: float
) -> Hypothesis:
    """Algorithm 1 of Meister et al. (2020): all steps up to the limit, regardless of finished hypotheses."""
    beam = [Hypothesis((), 0.0, ended=False)]
    for _ in range(limit):
        extended = [hypothesis for hypothesis in beam if hypothesis.ended]
        for tokens, log_p, ended in beam:
            if not ended:
                following = next_log_probs(model, [*given, *tokens], EXCLUDED)
                extended += [
                    Hypothesis((*tokens, token), log_p + following[token], ended=False) for token in ORDINARY
                ]
                extended.append(Hypothesis(tokens, log_p + following[EOS], ended=True))
        beam = sorted(extended, key=lambda hypothesis: -hypothesis.score(length_penalty))[:num_beams]
    return beam[0]


def search(
    model: torch.nn.Module,
    collate_prompts: ARLMPromptCollator,
    *,
    num_beams: int,
    limit: int,
    length_penalty: float,
) -> tuple[list[Text], list[int]]:
    """Targets and evaluations of the network for all prompts in one batch."""
    predictor = ARLMBeamPredictor(
        pad_id=PAD,
        eos_id=EOS,
        num_beams=num_beams,
        length_penalty=length_penalty,
        suppressed_ids=SUPPRESSED,
        max_new_tokens=limit,
    )
    batch = collate_prompts([example(prompt=prompt) for prompt in PROMPTS])
    prediction = predictor(model, batch, torch.zeros(len(PROMPTS), dtype=torch.int64), trace=True)
    rows = [
        tuple(to_list(ids[:n])) for ids, n in zip(prediction.ids, to_list(prediction.lengths), strict=True)
    ]
    assert prediction.trace is not None
    assert [tuple(replay(prediction.trace, row)) for row in range(len(rows))] == rows
    assert prediction.states is not None
    if isinstance(model, CountingModel):
        assert model.rows == int(prediction.states.sum())
    return rows, to_list(prediction.nfe)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", [5, 6])
def test_enough_beams_search_exhaustively(
    collate_prompts: ARLMPromptCollator, seed: int, length_penalty: float
) -> None:
    """With at most 3 of 4 tokens there are never more than 4 + 16 + 64 + 1 hypotheses."""
    model = make_model(seed=seed)
    found, _ = search(model, collate_prompts, num_beams=85, limit=3, length_penalty=length_penalty)
    assert found == [exhaustive(seed, (*prompt, BOS), 3, length_penalty) for prompt in PROMPTS]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_few_beams_follow_the_published_algorithm(
    collate_prompts: ARLMPromptCollator, num_beams: int, length_penalty: float
) -> None:
    """Here the search stops as soon as no hypothesis can win any more; the result is the same."""
    fewest = 5
    for seed in (3, 5, 6):
        model = make_model(seed=seed)
        found, nfe = search(
            model, collate_prompts, num_beams=num_beams, limit=5, length_penalty=length_penalty
        )
        expected = [
            plain_beam_search(
                model, [*prompt, BOS], num_beams=num_beams, limit=5, length_penalty=length_penalty
            )
            for prompt in PROMPTS
        ]
        assert found == [hypothesis.tokens for hypothesis in expected]
        fewest = min(fewest, *nfe)
    assert fewest < 5, "no search ended early: the rule that ends it was not tried"


def test_one_beam_is_greedy(collate_prompts: ARLMPromptCollator) -> None:
    greedy = ARLMPredictor(
        pad_id=PAD, eos_id=EOS, suppressed_ids=SUPPRESSED, temperature=0.0, max_new_tokens=5
    )
    batch = collate_prompts([example(prompt=prompt) for prompt in PROMPTS])
    lengths: set[int] = set()
    for seed in (0, 3, 5, 6):
        model = make_model(seed=seed)
        expected = greedy(model, batch, torch.zeros(len(PROMPTS), dtype=torch.int64))
        found, nfe = search(model, collate_prompts, num_beams=1, limit=5, length_penalty=1.0)
        assert found == [
            tuple(to_list(ids[:n])) for ids, n in zip(expected.ids, to_list(expected.lengths), strict=True)
        ]
        assert nfe == to_list(expected.nfe)
        lengths |= {len(text) for text in found}
    assert len(lengths) > 1


def test_more_beams_find_what_greedy_misses(collate_prompts: ARLMPromptCollator) -> None:
    model = make_model(seed=6)
    one, _ = search(model, collate_prompts, num_beams=1, limit=4, length_penalty=0.0)
    many, _ = search(model, collate_prompts, num_beams=8, limit=4, length_penalty=0.0)
    assert one != many


def test_rows_that_are_done_leave_the_batch(collate_prompts: ARLMPromptCollator) -> None:
    counting = CountingModel(make_model(seed=6))
    _, nfe = search(counting, collate_prompts, num_beams=3, limit=5, length_penalty=0.0)
    assert len(set(nfe)) > 1
    assert counting.calls == max(nfe)
    assert counting.rows <= len(PROMPTS) + 3 * (sum(nfe) - len(PROMPTS))


def test_fixed_tokens_and_rows_without_room(collate_prompts: ARLMPromptCollator, model: ARLM) -> None:
    predictor = ARLMBeamPredictor(pad_id=PAD, eos_id=EOS, num_beams=85, suppressed_ids=SUPPRESSED)
    rows = [example([9, 8, 7, 7], prompt=[10], num_fixed=3), example([9] * 6, num_fixed=6)]
    prediction = predictor(model, collate_prompts(rows), torch.zeros(2, dtype=torch.int64))
    first, second = (
        tuple(to_list(ids[:n])) for ids, n in zip(prediction.ids, to_list(prediction.lengths), strict=True)
    )
    assert first == (9, 8, 7, *exhaustive(0, (10, BOS, 9, 8, 7), 3, 0.0))
    assert second == (9,) * 6
    assert int(prediction.nfe[1]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"length_penalty": -0.5}, "length_penalty must be at least 0 and finite, got -0.5"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARLMBeamPredictor(pad_id=PAD, eos_id=EOS, **options)  # pyright: ignore[reportArgumentType]  # wrong on purpose
