"""Hard constraints from left to right: texts and weights against an enumeration of the sampler."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch

from xlm.modules.records import Targets, Trace, UserEdit
from xlm.modules.samplers import Automaton, forbid_tokens, match_expression
from xlm_arlm import ARLM, ARLMPrediction, ARLMPredictor, ARLMPromptCollator

from .plain_distribution import BOS, EOS, ORDINARY, PAD, SUPPRESSED, VOCAB_SIZE, Text, example, texts
from .test_likelihood_arlm import Bigram, Filters, probability
from .test_predictor_arlm import rows_of

LIMIT = 3
CONSTRAINTS: dict[str, tuple[Automaton, Callable[[Text], bool]]] = {
    "without 8": (forbid_tokens([8], VOCAB_SIZE), lambda text: 8 not in text),
    "ends in 9": (match_expression(".* 9", VOCAB_SIZE), lambda text: text[-1:] == (9,)),
    "7 and 8 in pairs": (
        match_expression("(7 8|9)*", VOCAB_SIZE),
        lambda text: text in ((), (9,), (9, 9), (7, 8), (9, 9, 9), (7, 8, 9), (9, 7, 8)),
    ),
    "two tokens": (match_expression("(7|8|9|10) [7-10]", VOCAB_SIZE), lambda text: len(text) == 2),
}
FILTERS: list[Filters] = [(1.0, None, None), (0.7, 3, None), (1.3, None, 0.8)]


def predictor(
    constraint: Automaton | None, filters: Filters = FILTERS[0], *, eos_id: int | None = EOS
) -> ARLMPredictor:
    temperature, top_k, top_p = filters
    return ARLMPredictor(
        pad_id=PAD,
        eos_id=eos_id,
        suppressed_ids=SUPPRESSED,
        max_new_tokens=LIMIT,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        constraint=constraint,
    )


def weights_of(prediction: ARLMPrediction) -> Iterator[tuple[Text, float]]:
    assert prediction.log_weight is not None
    return zip(rows_of(prediction), prediction.log_weight.exp().tolist(), strict=True)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_weighted_texts_have_the_renormalised_distribution(
    model: ARLM, collate_prompts: ARLMPromptCollator, name: str, filters: Filters
) -> None:
    """The order is a function of the text, and so is its weight w; it is drawn with probability p / w."""
    automaton, is_allowed = CONSTRAINTS[name]
    rows = 1500
    batch = collate_prompts([example(prompt=[8])] * rows)
    found, number = dict[Text, float](), defaultdict[Text, int](int)
    for text, weight in weights_of(predictor(automaton, filters)(model, batch, torch.arange(rows))):
        assert is_allowed(text)
        assert found.setdefault(text, weight) == pytest.approx(weight, rel=1e-12)
        number[text] += 1
    every = {text: probability(model, text, filters, LIMIT) for text in texts(ORDINARY, LIMIT)}
    possible = {text: mass for text, mass in every.items() if is_allowed(text) and mass > 0}
    drawn = {text: possible[text] / weight for text, weight in found.items() if weight > 0}
    missing = 1 - sum(drawn.values()) - sum(number[text] for text in found if found[text] == 0) / rows
    assert missing == pytest.approx(0, abs=0.06), "texts that were not drawn have little mass"
    for text, chance in drawn.items():
        assert abs(number[text] / rows - chance) < 5 * math.sqrt(chance * (1 - chance) / rows) + 1e-12
    mean = sum(weight * number[text] for text, weight in found.items()) / rows
    square = sum(weight**2 * number[text] for text, weight in found.items()) / rows
    error = 5 * math.sqrt((square - mean**2) / rows) + 1e-12
    assert mean == pytest.approx(sum(possible.values()), abs=error)
    assert mean < 0.97, "the constraint acts"


def test_the_weight_of_a_text_is_the_mass_of_what_is_allowed_after_each_prefix(
    model: ARLM, collate_prompts: ARLMPromptCollator
) -> None:
    automaton, is_allowed = CONSTRAINTS["7 and 8 in pairs"]
    allowed = [text for text in texts(ORDINARY, LIMIT) if is_allowed(text)]
    batch = collate_prompts([example(prompt=[8])] * 200)
    for text, weight in weights_of(predictor(automaton)(model, batch, torch.arange(200))):
        expected = 1.0
        for end in range(len(text) + (len(text) < LIMIT)):
            prefix = text[:end]
            kept = {other[: end + 1] for other in allowed if other[:end] == prefix}
            # A sampler that stops after so many tokens writes this prefix with the product of its factors.
            before = probability(model, prefix, FILTERS[0], end)
            expected *= sum(probability(model, other, FILTERS[0], end + 1) for other in kept) / before
        assert weight == pytest.approx(expected, rel=1e-9)


def test_a_constraint_that_allows_everything_changes_nothing(
    model: ARLM, collate_prompts: ARLMPromptCollator
) -> None:
    batch, seeds = collate_prompts([example(prompt=[8])] * 50), torch.arange(50)
    free = predictor(None)(model, batch, seeds)
    made = predictor(forbid_tokens([], VOCAB_SIZE))(model, batch, seeds, trace=True)
    assert rows_of(made) == rows_of(free)
    assert free.log_weight is None
    assert [weight for _, weight in weights_of(made)] == pytest.approx([1.0] * 50, rel=1e-12)


def test_given_tokens_and_the_limit_count(model: ARLM) -> None:
    collate = ARLMPromptCollator(pad_id=PAD, bos_id=BOS, max_length=4)
    rows = [example([7, 8], num_fixed=2), example([9], num_fixed=1, prompt=[8, 8]), example()] * 20
    constraint = match_expression("7 8 .+ | 9 9 9 10 | 10", VOCAB_SIZE)
    made = list(weights_of(predictor(constraint)(model, collate(rows), torch.arange(60))))
    assert all(text[:2] == (7, 8) and len(text) in (3, 4) for text, _ in made[::3])
    assert {text for text, _ in made[1::3]} == {(9, 9, 9, 10)}
    assert all(weight < 1 for _, weight in made)
    blocks = predictor(match_expression("(7|8)* 9", VOCAB_SIZE), eos_id=None)
    made = list(weights_of(blocks(model, collate([example()] * 20), torch.arange(20))))
    assert all(len(text) == LIMIT and text[-1] == 9 for text, _ in made)
    message = "no text of row 1, with its given tokens and a budget of 2 further ones, is allowed"
    with pytest.raises(ValueError, match=message):
        predictor(match_expression("7 .*", VOCAB_SIZE))(
            model, collate([example(), example([8, 7], num_fixed=2)]), torch.arange(2)
        )


def test_filters_that_leave_no_allowed_token_make_a_weight_0(
    model: ARLM, collate_prompts: ARLMPromptCollator
) -> None:
    batch = collate_prompts([example(prompt=[8])])
    [best] = rows_of(predictor(None, (0.0, None, None))(model, batch, torch.arange(1)))
    assert best == ()
    for expression, weight in ((".+", 0.0), (".*", 1.0)):
        constraint = match_expression(expression, VOCAB_SIZE)
        made = predictor(constraint, (0.0, None, None))(model, batch, torch.arange(1))
        [(text, found)] = weights_of(made)
        assert (found, text == best) == (weight, weight == 1.0)


def test_what_has_no_weight_is_refused(collate_prompts: ARLMPromptCollator) -> None:
    model, batch, seeds = Bigram(), collate_prompts([example()]), torch.arange(1)
    predict = predictor(forbid_tokens([8], VOCAB_SIZE))
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = Targets(ids=torch.tensor([[7]]), lengths=torch.tensor([1]))
    for call in (
        lambda: predict(model, batch, seeds, trace="full"),
        lambda: predict.likelihood(model, batch, targets, seeds),
        lambda: predict.trajectory_log_probs(model, batch, Trace(*[nothing] * 5), seeds),
        lambda: predict.fork(model, batch, seeds, UserEdit(1, 0, 0, 7)),
    ):
        with pytest.raises(ValueError, match=r"under a constraint.*set predictor\.constraint to null"):
            call()
    with pytest.raises(ValueError, match="constraint's vocab_size must be that of the network, 11, got 12"):
        predictor(forbid_tokens([8], 12))(model, batch, seeds)
