"""Languages with a known distribution, compared with enumeration of all texts and paths."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm.tasks.metrics import Generation
from xlm.tasks.synthetic import (
    ARLMOracle,
    GrammarLanguage,
    LanguageMetrics,
    MarkovLanguage,
    MaskedOracle,
    draw_texts,
    encode_tokens,
    estimate_entropy,
    factorisation_error,
    hmm,
    language_rows,
    layout,
    length_probs,
    log_probs,
    ngram,
    pcfg,
)
from xlm.tasks.tokenizers import NumberTokenizer

Text = tuple[int, ...]

NGRAM = ngram(order=3, num_tokens=2, mean_length=3.0, max_length=4, sharpness=1.0, seed=1)
HMM = hmm(num_states=3, num_tokens=2, mean_length=3.0, max_length=4, sharpness=1.0, seed=2)
PCFG = pcfg(
    num_nonterminals=4, num_tokens=4, num_rules=2, mean_length=4.0, max_length=4, sharpness=1.0, seed=3
)
AnyLanguage = MarkovLanguage | GrammarLanguage
LANGUAGES: dict[str, AnyLanguage] = {"ngram": NGRAM, "hmm": HMM, "pcfg": PCFG}


def markov_texts(language: MarkovLanguage) -> dict[Text, float]:
    """Probabilities by enumeration of all paths, before the conditioning."""
    found: defaultdict[Text, float] = defaultdict(float)
    initial, transition = language.initial.tolist(), language.transition.tolist()
    stop, emission = language.stop.tolist(), language.emission.tolist()
    states, tokens = range(len(stop)), range(language.num_tokens)
    for length in range(1, language.max_length + 1):
        for path in itertools.product(states, repeat=length):
            moves = initial[path[0]] * stop[path[-1]]
            for state, following in itertools.pairwise(path):
                moves *= transition[state][following]
            if moves > 0:
                for text in itertools.product(tokens, repeat=length):
                    found[text] += moves * math.prod(emission[s][v] for s, v in zip(path, text, strict=True))
    return {text: p for text, p in found.items() if p > 0}


def grammar_texts(language: GrammarLanguage) -> dict[Text, float]:
    """Probabilities by enumeration of all leftmost derivations, before the conditioning."""
    found: defaultdict[Text, float] = defaultdict(float)
    size = len(language.lexical)

    def derive(text: Text, pending: Text, p: float) -> None:
        if p == 0 or len(text) + len(pending) > language.max_length:
            return
        if not pending:
            found[text] += p
            return
        first, *rest = pending
        for token in range(language.num_tokens):
            derive((*text, token), tuple(rest), p * float(language.lexical[first, token]))
        for left, right in itertools.product(range(size), repeat=2):
            derive(text, (left, right, *rest), p * float(language.binary[first, left, right]))

    derive((), (0,), 1.0)
    return dict(found)


@cache
def enumerated(language: AnyLanguage) -> dict[Text, float]:
    """All possible texts with their probabilities."""
    unconditioned = (
        grammar_texts(language) if isinstance(language, GrammarLanguage) else markov_texts(language)
    )
    mass = sum(unconditioned.values())
    return {text: p / mass for text, p in unconditioned.items()}


def all_texts(language: AnyLanguage) -> Iterator[Text]:
    for length in range(language.max_length + 2):
        yield from itertools.product(range(language.num_tokens), repeat=length)


@pytest.fixture(params=list(LANGUAGES))
def language(request: pytest.FixtureRequest) -> AnyLanguage:
    return LANGUAGES[request.param]


def test_log_probabilities_are_those_of_enumeration(language: AnyLanguage) -> None:
    expected = enumerated(language)
    texts = list(all_texts(language))
    wanted = torch.tensor([expected.get(text, 0.0) for text in texts], dtype=torch.float64).log()
    torch.testing.assert_close(log_probs(language, texts), wanted, rtol=0, atol=1e-13)
    outside = [(language.num_tokens,), (0, -1), ()]
    assert log_probs(language, outside).tolist() == [-math.inf] * 3
    assert len(log_probs(language, [])) == 0


def test_lengths_are_those_of_enumeration(language: AnyLanguage) -> None:
    expected = [0.0] * (language.max_length + 1)
    for text, p in enumerated(language).items():
        expected[len(text)] += p
    assert length_probs(language).tolist() == pytest.approx(expected, abs=1e-14)


def test_the_entropy_of_an_ngram_is_that_of_enumeration() -> None:
    expected = -sum(p * math.log(p) for p in enumerated(NGRAM).values())
    assert NGRAM.entropy == pytest.approx(expected, abs=1e-13)
    assert HMM.entropy is None
    assert estimate_entropy(NGRAM) == (NGRAM.entropy, 0.0)


def test_the_entropy_tends_to_that_of_the_chain_without_a_limit() -> None:
    """H(p0) + sum over states of the expected visits times the entropy of the next move."""
    long = ngram(order=2, num_tokens=3, mean_length=3.0, max_length=200, sharpness=1.0, seed=0)
    visits = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - long.transition.T, long.initial)
    moves = torch.cat([long.transition, long.stop.unsqueeze(1)], dim=1)
    expected = torch.special.entr(long.initial).sum() + visits @ torch.special.entr(moves).sum(1)
    assert long.entropy == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("name", ["hmm", "pcfg"])
def test_the_estimate_of_an_entropy_is_within_its_error(name: str) -> None:
    language = LANGUAGES[name]
    expected = -sum(p * math.log(p) for p in enumerated(language).values())
    estimate, error = estimate_entropy(language)
    assert 0 < error < 0.03
    assert abs(estimate - expected) < 4 * error


def test_drawn_texts_follow_the_distribution(language: AnyLanguage) -> None:
    """Chi-squared over the texts with an expected count above 5: mean k, standard deviation sqrt(2k)."""
    count = 20_000
    drawn: defaultdict[Text, int] = defaultdict(int)
    for text in draw_texts(language, count, np.random.default_rng(0)):
        drawn[tuple(text)] += 1
    expected = enumerated(language)
    assert set(drawn) <= set(expected)
    terms = [(drawn[text] - count * p) ** 2 / (count * p) for text, p in expected.items() if count * p > 5]
    assert abs(sum(terms) - len(terms)) < 4 * math.sqrt(2 * len(terms))


def test_rows_depend_on_seed_and_split_and_a_longer_split_begins_with_a_shorter_one() -> None:
    def rows(split: str, count: int, seed: int = 0) -> list[list[int]]:
        found = language_rows(split, language=HMM, num_rows={"train": count, "test": count}, seed=seed)
        return [row["tokens"] for row in found]

    assert rows("train", 5000)[:50] == rows("train", 50)
    assert rows("train", 50) != rows("test", 50)
    assert rows("train", 50) != rows("train", 50, seed=1)
    assert encode_tokens({"tokens": [0, 1]}, NumberTokenizer(2)) == {"target_ids": [7, 8]}
    with pytest.raises(ValueError, match="unknown split 'dev': the splits are train, val, test"):
        rows("dev", 1)


# What enumeration says about cells


def cells_of(language: AnyLanguage) -> tuple[Tensor, Tensor]:
    """(texts, max_length + 1) symbols of all possible texts, and their probabilities."""
    expected = enumerated(language)
    return layout(language, list(expected)), torch.tensor(list(expected.values()), dtype=torch.float64)


def ids_of(language: AnyLanguage, cells: Tensor, tokenizer: NumberTokenizer) -> Tensor:
    symbols = [*range(7, 7 + language.num_tokens), tokenizer.eos_id, tokenizer.pad_id]
    return torch.tensor(symbols)[cells]


def test_the_masked_oracle_is_the_conditional_probability(language: AnyLanguage) -> None:
    tokenizer = NumberTokenizer(language.num_tokens)
    oracle = MaskedOracle(language, tokenizer)
    cells, p = cells_of(language)
    ids = ids_of(language, cells, tokenizer)
    for visible in itertools.product((False, True), repeat=language.max_length):
        shown = torch.tensor([*visible])
        rows = torch.where(shown, ids[:, :-1], tokenizer.mask_id)
        found = oracle(torch.nn.functional.pad(rows, (1, 0), value=tokenizer.bos_id))[:, 1:].exp()
        same = ((cells[:, None, :-1] == cells[None, :, :-1]) | ~shown).all(-1).double() * p
        is_symbol = torch.nn.functional.one_hot(ids[:, :-1], tokenizer.vocab_size).double()
        wanted = torch.einsum("rt,tcv->rcv", same / same.sum(1, keepdim=True), is_symbol)
        torch.testing.assert_close(found[:, ~shown], wanted[:, ~shown], rtol=0, atol=1e-12)


def test_the_oracle_ignores_what_stands_behind_the_end() -> None:
    tokenizer = NumberTokenizer(2)
    mask, eos, pad = tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id
    rows = torch.tensor([[4, mask, mask, eos, 7], [4, mask, mask, eos, pad]])
    found = MaskedOracle(HMM, tokenizer)(rows)
    torch.testing.assert_close(found[0, 1:3], found[1, 1:3])
    with pytest.raises(ValueError, match="rows of 4 columns: the oracle needs 5"):
        MaskedOracle(HMM, tokenizer)(rows[:, :-1])


def test_no_text_with_the_visible_cells_gives_equal_probabilities() -> None:
    expected = enumerated(PCFG)
    pairs = set(itertools.product(range(4), repeat=2)) - {text[:2] for text in expected}
    first, second = min(pairs)
    ids = torch.tensor([[4, 7 + first, 7 + second, 2, 2]])
    found = MaskedOracle(PCFG, NumberTokenizer(4))(ids).exp()[0, 3]
    assert sorted(set(found.tolist())) == pytest.approx([0, 1 / 6])


class OneLayerCache:
    """Keeps the columns as ``xlm.modules.KeyValueCache`` does."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []

    def extend(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        pass

    def layer(self, index: int) -> "OneLayerCache":
        return self

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.columns.append(key)
        return torch.cat(self.columns, dim=2), torch.cat(self.columns, dim=2)


def test_the_causal_oracle_multiplies_to_the_probability_of_a_text(language: AnyLanguage) -> None:
    tokenizer = NumberTokenizer(language.num_tokens)
    oracle = ARLMOracle(language, tokenizer)
    cells, p = cells_of(language)
    ids = ids_of(language, cells, tokenizer)
    inputs = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=tokenizer.bos_id)
    whole = oracle(inputs)
    found = whole.gather(2, ids.unsqueeze(2)).squeeze(2).sum(1)
    torch.testing.assert_close(found.exp(), p, rtol=0, atol=1e-13)
    cache = OneLayerCache()
    for column in range(inputs.shape[1]):
        step = oracle(inputs[:, [column]], cache=cache, positions=torch.arange(len(inputs)))
        torch.testing.assert_close(step, whole[:, column])


def test_one_cell_at_a_time_has_no_factorisation_error(language: AnyLanguage) -> None:
    cells, _ = cells_of(language)
    orders = torch.tensor(list(itertools.permutations(range(language.max_length))))
    for order in orders:
        error = factorisation_error(language, cells, order.expand(len(cells), -1))
        assert float(error.abs().max()) < 1e-12


def test_the_factorisation_error_is_the_divergence_from_the_sampler(language: AnyLanguage) -> None:
    """Against the distribution of the sampler by enumeration, and the total correlations."""
    cells, p = cells_of(language)
    plan = torch.tensor([0, 1, 1, 0])
    error = p @ factorisation_error(language, cells, plan.expand(len(cells), -1))
    # KL = sum over steps of E[sum of entropies of the cells - joint entropy | cells before].
    total = torch.zeros((), dtype=torch.float64)
    for step in (0, 1):
        before, written = cells[:, :-1][:, plan < step], cells[:, :-1][:, plan == step]
        joint = entropy_of(torch.cat([before, written], dim=1), p) - entropy_of(before, p)
        single = sum(
            entropy_of(torch.cat([before, column.unsqueeze(1)], dim=1), p) - entropy_of(before, p)
            for column in written.T
        )
        total += single - joint
    assert float(error) == pytest.approx(float(total), abs=1e-12)
    assert float(error) > 0.05


def entropy_of(columns: Tensor, p: Tensor) -> Tensor:
    groups: defaultdict[Text, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    for row, value in zip(columns.tolist(), p, strict=True):
        groups[tuple(row)] = groups[tuple(row)] + value
    return torch.special.entr(torch.stack(list(groups.values()))).sum()


# Metrics


def generations(texts: Sequence[Sequence[int]], references: Sequence[Sequence[int]] = ()) -> list[Generation]:
    given = [*references, *[()] * (len(texts) - len(references))]
    unused = Generation(prompt_ids=[], ids=[], reference_ids=[], prompt="", text="", reference="")
    return [
        {**unused, "text": " ".join(map(str, text)), "reference": " ".join(map(str, reference))}
        for text, reference in zip(texts, given, strict=True)
    ]


def test_metrics_of_all_texts_by_hand() -> None:
    expected = enumerated(PCFG)
    possible = list(expected)
    impossible = [text for text in all_texts(PCFG) if text not in expected][: len(possible)]
    metrics = LanguageMetrics(PCFG)
    metrics.update(generations([*possible, *impossible]))
    found = metrics.compute()
    nats = [-math.log(p) for p in expected.values()]
    assert found["impossible"] == 0.5
    log_p = metrics.text_log_probs([" ".join(map(str, text)) for text in possible])
    assert log_p.tolist() == pytest.approx([-each for each in nats])
    assert found["cross_entropy"] == pytest.approx(sum(nats) / len(nats))
    assert found["cross_entropy_error"] == pytest.approx(np.std(nats, ddof=1) / math.sqrt(len(nats)))
    assert found["covered"] == pytest.approx(1.0)
    lengths = [len(text) for text in [*possible, *impossible]]
    assert found["tokens"] == pytest.approx(np.mean(lengths))
    exact = length_probs(PCFG).tolist()
    distance = sum(abs(lengths.count(n) / len(lengths) - exact[n]) for n in range(len(exact))) / 2
    assert found["length_distance"] == pytest.approx(distance)


def test_metrics_do_not_depend_on_batches_and_special_tokens_are_impossible() -> None:
    texts = [[0, 1], [1], [0, 1], [0] * 9, []]
    whole, parts = LanguageMetrics(NGRAM), LanguageMetrics(NGRAM)
    broken = generations(texts, texts[:2])
    broken[1]["text"] = "1 [MASK]"
    whole.update(broken)
    tables: list[dict[str, Tensor]] = []
    for generation in broken:
        parts.reset()
        parts.update([generation])
        tables.append(parts.lists)
    parts.lists = {name: torch.cat([table[name] for table in tables]) for name in parts.lists}
    assert parts.compute() == whole.compute()
    assert whole.compute()["impossible"] == pytest.approx(3 / 5)
    reference = float(-log_probs(NGRAM, texts[:2]).mean())
    assert whole.compute()["reference_cross_entropy"] == pytest.approx(reference)


def test_metrics_of_texts_of_the_language_itself() -> None:
    metrics = LanguageMetrics(NGRAM)
    assert metrics.compute()["cross_entropy"] == 0.0
    metrics.update(generations(draw_texts(NGRAM, 2000, np.random.default_rng(7))))
    found = metrics.compute()
    assert found["impossible"] == 0
    assert abs(found["cross_entropy"] - found["entropy"]) < 4 * found["cross_entropy_error"]
    assert found["length_distance"] < 0.05
    assert found["covered"] == pytest.approx(found["drawn_covered"], abs=0.05)


# Arguments


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": 1}, "order must be at least 2, got 1"),
        ({"num_tokens": 1}, "num_tokens must be at least 2, got 1"),
        ({"mean_length": 2.0}, "mean_length must be above 2, got 2.0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(changed: dict[str, float], message: str) -> None:
    arguments = {"order": 2, "num_tokens": 2, "mean_length": 4.0, "max_length": 4, "sharpness": 1.0}
    with pytest.raises(ValueError, match=message):
        ngram(**(arguments | changed), seed=0)  # pyright: ignore[reportArgumentType]  # one value for each parameter


def test_a_grammar_that_need_not_end_is_rejected() -> None:
    binary = torch.tensor([[[0.5]]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"need not end.* spectral radius 1.000"):
        GrammarLanguage(binary, torch.tensor([[0.5]], dtype=torch.float64), 4)
    with pytest.raises(ValueError, match="do not add up to 1"):
        GrammarLanguage(binary, torch.tensor([[0.4]], dtype=torch.float64), 4)
    with pytest.raises(ValueError, match="below -700: choose a shorter max_length"):
        GrammarLanguage(binary / 5, torch.tensor([[0.9]], dtype=torch.float64), 400)


def test_the_inside_algorithm_counts_derivations() -> None:
    """S -> S S | token: Catalan(n - 1) derivations of n tokens."""
    grammar = GrammarLanguage(
        torch.tensor([[[0.4]]], dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64), 10
    )
    weights = {n: math.comb(2 * n - 2, n - 1) / n * 0.4 ** (n - 1) * 0.6**n for n in range(1, 11)}
    found = length_probs(grammar).tolist()[1:]
    assert found == pytest.approx([weights[n] / sum(weights.values()) for n in range(1, 11)], abs=1e-15)


def test_long_texts_do_not_underflow() -> None:
    language = hmm(num_states=4, num_tokens=16, mean_length=500.0, max_length=600, sharpness=1.0, seed=0)
    text = [1, 7] * 300
    alive = language.initial.log()
    for index, token in enumerate(text):
        alive = alive + language.emission[:, token].log()
        if index + 1 < len(text):
            alive = (alive.unsqueeze(1) + language.transition.log()).logsumexp(0)
    total = float((alive + language.stop.log()).logsumexp(0)) - math.log(float(1 - unfinished(language)))
    assert total < -745  # below the smallest number of float64
    assert float(log_probs(language, [text])) == pytest.approx(total, rel=1e-12)


def unfinished(language: MarkovLanguage) -> Tensor:
    """Mass of the texts that are longer than max_length: pi A^max_length 1."""
    return language.initial @ torch.linalg.matrix_power(language.transition, language.max_length).sum(1)
