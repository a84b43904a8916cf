"""Hard constraints: automata against Python's expressions, weights against the renormalised distribution."""

import itertools
import math
import re
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from xlm.modules import TokenSampling
from xlm.modules.records import Targets
from xlm.modules.samplers import (
    Automaton,
    Generation,
    check_constraint,
    compose,
    forbid_tokens,
    match_expression,
    record,
    sampler_likelihood,
)

from .exact_samplers import END, FIRST, MASK, VOCABULARY, Cells, Rule, TableNetwork, distribution, up_to_end
from .exact_samplers import prompt_batch as prompts
from .test_replay import FULL, TEXTS, generation_of
from .test_samplers import START, name_of

LETTERS = "abcde"
NETWORK = TableNetwork(scale=0.7)


@pytest.mark.parametrize(
    ("expression", "pattern"),
    [
        ("2 3", "cd"),
        ("2*", "c*"),
        ("(2|3 4)+", "(c|de)+"),
        ("2? 3+ .", "c?d+."),
        ("[2-4]* 2", "[c-e]*c"),
        ("[^2 3] .* | 4", "[^cd].*|e"),
        ("(2 (3|) )* 4?", "(c(d|))*e?"),
        ("", ""),
    ],
)
def test_an_expression_allows_the_texts_that_it_matches(expression: str, pattern: str) -> None:
    automaton = match_expression(expression, 5)
    for length in range(5):
        for text in itertools.product(range(5), repeat=length):
            matches = re.fullmatch(pattern, "".join(LETTERS[token] for token in text)) is not None
            assert accepts(automaton, text) == matches, text


def accepts(automaton: Automaton, text: Cells) -> bool:
    state = 0
    for token in text:
        state = int(automaton.transitions[state, token])
        if state < 0:
            return False
    return bool(automaton.accepting[state])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("2 a", "expression must be of token ids, spaces and .* got 'a'"),
        ("(2 3", r"must go on with \) behind symbol 3, got its end"),
        ("2)", r"must go on with its end behind symbol 1, got \)"),
        ("*", r"must have a token id behind symbol 0, got \*"),
        ("[2", "must have a token id behind symbol 2, got its end"),
        ("5", "token id must be below 5, got 5"),
        ("[^0-4]", r"expression must be one that matches some text, got '\[\^0-4\]'"),
    ],
)
def test_what_is_no_expression_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_expression(expression, 5)


def test_tables_that_do_not_fit_and_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="transitions must be a table of states from -1 to 0 with 1 rows"):
        Automaton(torch.tensor([[1]]), torch.tensor([True]))
    with pytest.raises(ValueError, match="accepting must be true at a state"):
        Automaton(torch.tensor([[0]]), torch.tensor([False]))
    with pytest.raises(ValueError, match="token_ids must be ids below vocab_size=5"):
        forbid_tokens([5], 5)


BY_TEXT = [
    Rule("left_to_right", "count"),
    Rule("left_to_right", "count", "none", {"num_steps": 2}),
    Rule("top_prob", "count"),
    Rule("margin", "count", "none", {"num_steps": 2}),
    Rule("top_prob", "threshold", "none", {"tau": 0.4}),
    Rule("entropy", "budget", "none", {"gamma": 0.9}),
]
BY_SEED = [
    Rule("random", "count", "none", {"num_steps": 2}),
    Rule("random", "hitting"),
    Rule("random", "hazard", "none", {"num_steps": 2}),
]
CONSTRAINTS = [
    forbid_tokens([3], VOCABULARY),
    match_expression("2 .* | 4 3 3", VOCABULARY),
    match_expression("(2|3 4)*", VOCABULARY),
]
"""The last two tie cells together; texts of three tokens are 2 2 2, 2 3 4 and 3 4 2 for the last."""


def constrained(rule: Rule, constraint: Automaton, sampling: TokenSampling | None = None) -> Generation:
    return replace(generation_of(rule, NETWORK, sampling), constraint=constraint)


def write(
    generation: Generation, rows: int, *, may_end: bool = False, start: Cells = START
) -> tuple[list[Cells], list[float]]:
    """Texts and weights."""
    text, _, log_weight = generation.write(prompts(start, rows, may_end=may_end), torch.arange(rows))
    assert log_weight is not None
    ids, lengths = text.targets(END)
    texts = [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
    return texts, log_weight.exp().tolist()


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("rule", BY_TEXT, ids=name_of)
def test_a_weight_is_the_probability_over_that_of_being_written(rule: Rule, constraint: Automaton) -> None:
    """The order is a function of the text, and so is the weight w; p / w is a distribution over the texts."""
    found: dict[Cells, float] = {}
    for text, weight in zip(*write(constrained(rule, constraint), 3000), strict=True):
        assert accepts(constraint, text)
        assert found.setdefault(text, weight) == pytest.approx(weight, rel=1e-12)
    allowed = [text for text in FULL if accepts(constraint, text)]
    assert set(found) == set(allowed)
    probability = distribution(rule, NETWORK.prediction(), START)
    total = sum(probability[text] / found[text] for text in allowed)
    assert total == pytest.approx(1.0, rel=1e-12)
    assert min(found.values()) < 0.9, "the constraint acts"


@pytest.mark.parametrize("may_end", [False, True])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("rule", [*BY_SEED, BY_TEXT[2]], ids=name_of)
def test_weighted_texts_have_the_renormalised_distribution(
    rule: Rule, constraint: Automaton, may_end: bool
) -> None:
    """The mean weight with which a text is written is its probability, within 5 standard errors."""
    rows = 8000
    texts, weights = write(constrained(rule, constraint), rows, may_end=may_end)
    cells = distribution(rule, NETWORK.prediction(may_end=may_end), START)
    probability = up_to_end(cells) if may_end else cells
    by_text: defaultdict[Cells, list[float]] = defaultdict(list)
    for text, weight in zip(texts, weights, strict=True):
        assert accepts(constraint, text)
        by_text[text].append(weight)
    errors = 0.0
    for text in TEXTS if may_end else FULL:
        expected = probability.get(text, 0.0) if accepts(constraint, text) else 0.0
        mean = sum(by_text[text]) / rows
        error = math.sqrt(sum(weight**2 for weight in by_text[text]) / rows - mean**2) / math.sqrt(rows)
        assert abs(mean - expected) <= 5 * error + 1e-12
        errors += error
    assert errors < 0.1, "the weights say little"


def test_a_constraint_that_allows_everything_changes_nothing() -> None:
    for rule in (*BY_TEXT, *BY_SEED):
        free = generation_of(rule, NETWORK, TokenSampling(0.7, 2))
        texts, weights = write(replace(free, constraint=forbid_tokens([], VOCABULARY)), 200, may_end=True)
        text, _, _ = free.write(prompts(START, 200, may_end=True), torch.arange(200))
        ids, lengths = text.targets(END)
        assert texts == [
            tuple(row[:length]) for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)
        ]
        assert weights == pytest.approx([1.0] * 200, abs=1e-12)


def test_filters_that_leave_no_allowed_token_make_a_weight_0() -> None:
    """An allowed text is written nevertheless."""
    rule = Rule("left_to_right", "count")
    greedy = generation_of(rule, NETWORK, TokenSampling(0.0))
    text, _, _ = greedy.write(prompts(START, 1), torch.arange(1))
    [best] = [tuple(row) for row in text.targets(END)[0].tolist()]
    others = forbid_tokens([best[0]], VOCABULARY)
    for sampling in (TokenSampling(0.0), TokenSampling(1.0, 1)):
        texts, weights = write(constrained(rule, others, sampling), 5)
        assert weights == [0.0] * 5
        assert all(accepts(others, written) for written in texts)
    texts, weights = write(constrained(rule, forbid_tokens([MASK], VOCABULARY), TokenSampling(0.0)), 2)
    assert (texts, weights) == ([best] * 2, [1.0] * 2)


def test_given_tokens_count() -> None:
    constraint = match_expression("2 3 4 | 3 3 3", VOCABULARY)
    texts, weights = write(constrained(Rule("random", "count"), constraint), 40, start=(MASK, 3, MASK))
    assert set(texts) <= {(2, 3, 4), (3, 3, 3)}
    assert all(0 < weight < 1 for weight in weights)
    with pytest.raises(ValueError, match="no text of row 0, with its 3 cells and given tokens, is allowed"):
        write(constrained(Rule("random", "count"), constraint), 2, start=(MASK, 4, MASK))
    with pytest.raises(ValueError, match="no text of row 0, with its 3 cells"):
        write(constrained(Rule("random", "count"), match_expression("2 3", VOCABULARY)), 2)


def test_what_has_no_weight_is_refused() -> None:
    constraint = forbid_tokens([FIRST], VOCABULARY)
    for rule in ("low_confidence", "p2", "remdm_cap"):
        with pytest.raises(ValueError, match="a constraint needs a sampler that writes each cell once"):
            check_constraint(compose(rule), constraint)
        check_constraint(compose(rule), None)
    generation = constrained(Rule("left_to_right", "count"), constraint)
    batch, seeds = prompts(START, 1), torch.arange(1)
    with pytest.raises(ValueError, match="a trajectory has no likelihood by replay under a constraint"):
        record(generation, batch, seeds)
    with pytest.raises(ValueError, match="a text has no likelihood by replay under a constraint"):
        sampler_likelihood(generation, batch, Targets(torch.tensor([[2, 3, 4]]), torch.tensor([3])), seeds)
    with pytest.raises(ValueError, match="constraint's vocab_size must be that of the network, 5, got 6"):
        write(constrained(Rule("left_to_right", "count"), forbid_tokens([5], 6)), 1)
