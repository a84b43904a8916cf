"""The deletion process and its reversal over tiny vocabularies, by enumeration and quadrature in float64.

Shares no code with the package: texts are tuples, chains are dictionaries, batches are filled cell by cell.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from xlm_did import DID, DIDBatch, DIDOutput

PAD, CLS, BOS, FIRST = 0, 1, 2, 3
SPECIAL = (PAD, CLS, BOS)

Text = tuple[int, ...]
Pair = tuple[int, int]
"""Number of a slot, 0 being that of BOS, and a token."""
Array = np.ndarray


def texts(num_tokens: int, longest: int) -> list[Text]:
    ids = range(FIRST, FIRST + num_tokens)
    return [text for length in range(longest + 1) for text in itertools.product(ids, repeat=length)]


def inserted(text: Text, pair: Pair) -> Text:
    slot, token = pair
    return (*text[:slot], token, *text[slot:])


@cache
def num_embeddings(rest: Text, text: Text) -> int:
    """N(y, x), the number of times that y is a subsequence of x."""
    if not rest:
        return 1
    return sum(num_embeddings(rest[1:], text[i + 1 :]) for i, token in enumerate(text) if token == rest[0])


def kept_sets(text: Text, num_dropped: int) -> list[tuple[int, ...]]:
    """The places of the tokens that are left, of all ways to delete this many."""
    return list(itertools.combinations(range(len(text)), len(text) - num_dropped))


def rest_of(text: Text, kept: Sequence[int]) -> Text:
    return tuple(text[place] for place in kept)


def deleted_pairs(text: Text, kept: Sequence[int]) -> list[Pair]:
    """Slot of the rest, and token, of each deleted token."""
    return [(sum(k < place for k in kept), text[place]) for place in range(len(text)) if place not in kept]


def reverse_rates(rest: Text, text: Text) -> dict[Pair, float]:
    """rho, the rate of each insertion given the text, in the clock du / u, by its definition."""
    pairs = itertools.product(range(len(rest) + 1), sorted(set(text)))
    number = num_embeddings(rest, text)
    return {pair: num_embeddings(inserted(rest, pair), text) / number for pair in pairs}


def nodes(number: int, power: int = 1) -> tuple[Array, Array]:
    """Gauss-Legendre times in (0, 1) and their weights, dense at 0 for integrands like log u there."""
    x, w = np.polynomial.legendre.leggauss(number)
    t = (x + 1) / 2
    return t**power, w / 2 * power * t ** (power - 1)


def beta_density(u: Array, a: int, b: int) -> Array:
    return math.gamma(a + b) / math.gamma(a) / math.gamma(b) * u ** (a - 1) * (1 - u) ** (b - 1)


@dataclass(frozen=True)
class Rates:
    """The reversed process: at times u (numbers,), in a state that is a text."""

    numbers: Callable[[Text], Array]
    """A_n, n = 0, 1, ... (numbers,)."""
    insert: Callable[[Text, Array], dict[Pair, Array]]
    """exp J of each pair at each time."""

    def total(self, text: Text, u: Array) -> Array:
        """Z."""
        return np.polynomial.polynomial.polyval(u, self.numbers(text))

    def expected(self, text: Text, u: Array) -> Array:
        """The expected number of missing tokens."""
        a = self.numbers(text)
        return np.polynomial.polynomial.polyval(u, a * np.arange(len(a))) / self.total(text, u)


def oracle(distribution: dict[Text, float]) -> Rates:
    """The reversal of the deletion process of texts from a distribution."""
    longest = max(map(len, distribution))
    ids = sorted({token for text in distribution for token in text})

    @cache
    def weights(rest: Text, grown: Text) -> Array:
        """sum of p(x) N(grown, x) over texts x of |rest| + n tokens, by n."""
        found = np.zeros(longest - len(rest) + 1)
        for text, probability in distribution.items():
            if len(text) >= len(rest):
                found[len(text) - len(rest)] += probability * num_embeddings(grown, text)
        return found

    def insert(text: Text, u: Array) -> dict[Pair, Array]:
        if len(text) == longest:
            return {}
        pairs = list(itertools.product(range(len(text) + 1), ids))
        masses = [np.polynomial.polynomial.polyval(u, weights(text, inserted(text, pair))) for pair in pairs]
        return {pair: mass / sum(masses) for pair, mass in zip(pairs, masses, strict=True)}

    return Rates(numbers=lambda text: weights(text, text), insert=insert)


def rates_of(model: nn.Module, num_tokens: int, longest: int, prompt: Text = ()) -> Rates:
    """What a network gives for one text at a time, unpadded and in the order of the text."""

    def evaluate(text: Text, u: Array) -> DIDOutput:
        row = torch.tensor([[CLS, *prompt, BOS, *text]])
        named = {}
        if not getattr(model, "prompt_sees_target", True):
            named["prompt"] = torch.tensor([[False, *(True for _ in prompt), *(False for _ in (BOS, *text))]])
        with torch.no_grad():
            rows = row.expand(len(u), -1)
            named = {name: table.expand(len(u), -1) for name, table in named.items()}
            return model(rows, torch.ones_like(rows, dtype=torch.bool), time=torch.tensor(u), **named)

    @cache
    def numbers(text: Text) -> Array:
        logits = evaluate(text, np.ones(1)).length_logits[0].numpy()
        most = longest - len(text)
        return np.array([math.exp(logits[n]) * math.comb(len(text) + n, n) for n in range(most + 1)])

    def insert(text: Text, u: Array) -> dict[Pair, Array]:
        if len(text) == longest:
            return {}
        output = evaluate(text, u).token_logits
        table = output[:, 1 + len(prompt) :, FIRST : FIRST + num_tokens].flatten(1).softmax(1).numpy()
        pairs = itertools.product(range(len(text) + 1), range(FIRST, FIRST + num_tokens))
        return {pair: table[:, index] for index, pair in enumerate(pairs)}

    return Rates(numbers=numbers, insert=insert)


def generated(
    rates: Rates, every: Sequence[Text], *, steps: int = 1000, end: float = 22.0
) -> dict[Text, float]:
    """The distribution that the reversed process ends in: Runge-Kutta in the clock -log u."""
    u = np.exp(-np.linspace(0, end, 2 * steps + 1))
    index = {text: number for number, text in enumerate(every)}
    flow = np.zeros((len(u), len(every), len(every)))
    for text in every:
        expected = rates.expected(text, u)
        for pair, chance in rates.insert(text, u).items():
            flow[:, index[inserted(text, pair)], index[text]] += expected * chance
        flow[:, index[text], index[text]] -= expected
    mass = np.zeros(len(every))
    mass[index[()]] = 1.0
    width = end / steps
    for step in range(steps):
        start, middle, finish = flow[2 * step], flow[2 * step + 1], flow[2 * step + 2]
        k1 = start @ mass
        k2 = middle @ (mass + width / 2 * k1)
        k3 = middle @ (mass + width / 2 * k2)
        k4 = finish @ (mass + width * k3)
        mass = mass + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return {text: float(mass[number]) for text, number in index.items()}


def generated_in_steps(rates: Rates, num_steps: int, *, most: int | None = None) -> dict[Text, float]:
    """The distribution of the sampler that inserts the exact number of tokens of each of N steps.

    With ``most`` in rounds of so many tokens; their distributions must not depend on the time.
    """
    insert = at_once if most is None else partial(in_rounds, most=most)
    reached: dict[Text, float] = {(): 1.0}
    for step in range(num_steps):
        start, end = (1 - edge / num_steps for edge in (step, step + 1))
        after: defaultdict[Text, float] = defaultdict(float)
        for text, mass in reached.items():
            a = rates.numbers(text) * start ** np.arange(len(rates.numbers(text)))
            for missing, weight in enumerate(a / a.sum()):
                for number in range(missing + 1):
                    chance = math.comb(missing, number) * (1 - end / start) ** number
                    chance *= (end / start) ** (missing - number)
                    for grown, probability in insert(rates, text, number, start):
                        after[grown] += mass * weight * chance * probability
        reached = dict(after)
    return reached


def at_once(rates: Rates, text: Text, number: int, start: float) -> Iterator[tuple[Text, float]]:
    """What becomes of a text, with independent draws of its insertions."""
    pairs = {pair: float(p[0]) for pair, p in rates.insert(text, np.array([start])).items()}
    for draws in itertools.product(pairs, repeat=number):
        yield with_draws(text, draws), math.prod(pairs[pair] for pair in draws)


def in_rounds(
    rates: Rates, text: Text, number: int, start: float, *, most: int
) -> Iterator[tuple[Text, float]]:
    """The same in rounds, if the distribution of the pairs does not depend on the time."""
    if number == 0:
        yield text, 1.0
        return
    for grown, probability in one_round(rates, text, number, start, most):
        left = number - (len(grown) - len(text))
        for final, chance in in_rounds(rates, grown, left, start, most=most):
            yield final, probability * chance


def one_round(rates: Rates, text: Text, number: int, u: float, most: int) -> Iterator[tuple[Text, float]]:
    """What becomes of a text from which ``number`` tokens are missing, by a round read at time u."""
    chances = {pair: float(p[0]) for pair, p in rates.insert(text, np.array([u])).items()}
    of_slot = [sum(p for (slot, _), p in chances.items() if slot == at) for at in range(len(text) + 1)]
    for slots, weight in sets_of_slots(tuple(of_slot), number, most).items():
        choices = [
            [(pair, p / of_slot[slot]) for pair, p in chances.items() if pair[0] == slot] for slot in slots
        ]
        for draws in itertools.product(*choices):
            yield with_draws(text, [pair for pair, _ in draws]), weight * math.prod(p for _, p in draws)


@cache
def sets_of_slots(probs: tuple[float, ...], number: int, most: int) -> dict[tuple[int, ...], float]:
    """The slots of a round: n points (v + i) / n in a random order, v uniform; the first ``most`` slots."""
    ends = list(itertools.accumulate(probs))
    cuts = sorted({0.0, 1.0, *(number * end % 1 for end in ends[:-1])})
    found: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for low, high in itertools.pairwise(cuts):
        points = [((low + high) / 2 + index) / number for index in range(number)]
        hit = [
            next(slot for slot, end in enumerate(ends) if point < end or slot == len(ends) - 1)
            for point in points
        ]
        for order in itertools.permutations(hit):
            chosen = list(dict.fromkeys(order))[:most]
            found[tuple(sorted(chosen))] += (high - low) / math.factorial(number)
    return dict(found)


def generated_in_rounds(rates: Rates, most: int, text: Text = (), u: float = 1.0) -> dict[Text, float]:
    """The distribution of the sampler that draws the number of missing tokens anew in each round.

    The distributions of the pairs must not depend on the time.
    """
    a = rates.numbers(text)
    weights = a * u ** np.arange(len(a))
    weights = weights / weights.sum()
    found: defaultdict[Text, float] = defaultdict(float, {text: float(weights[0])})
    for number in range(1, len(a)):
        after: defaultdict[Text, float] = defaultdict(float)
        for grown, probability in one_round(rates, text, number, u, most):
            after[grown] += float(weights[number]) * probability
        for grown, probability in after.items():
            if len(grown) == len(text) + len(a) - 1:
                found[grown] += probability
                continue
            for time, density in times_of_last(number, len(grown) - len(text)):
                for final, chance in generated_in_rounds(rates, most, grown, u * time).items():
                    found[final] += probability * density * chance
    return dict(found)


@cache
def times_of_last(number: int, inserted: int) -> list[tuple[float, float]]:
    """Nodes and weights of the time of the k-th latest of n uniform times, of density Beta(n - k + 1, k)."""
    t, w = nodes(6)
    return list(zip(t.tolist(), (w * beta_density(t, number - inserted + 1, inserted)).tolist(), strict=True))


def with_draws(text: Text, draws: Sequence[Pair]) -> Text:
    """A text after insertions into its slots, those of one slot in the order given."""
    parts: list[int] = []
    for slot in range(len(text) + 1):
        parts += [token for chosen, token in draws if chosen == slot] + list(text[slot : slot + 1])
    return tuple(parts)


def random_distribution(num_tokens: int, lengths: Sequence[int], seed: int) -> dict[Text, float]:
    chosen = [text for text in texts(num_tokens, max(lengths)) if len(text) in lengths]
    weights = np.random.default_rng(seed).random(len(chosen)) ** 2
    return {text: float(weight) for text, weight in zip(chosen, weights / weights.sum(), strict=True)}


def random_network(
    num_tokens: int, max_missing: int, *, seed: int, prompt_sees_target: bool = True, reads_time: bool = True
) -> DID:
    """A small network whose numbers and insertions are far from uniform."""
    model = DID(
        vocab_size=FIRST + num_tokens,
        max_missing=max_missing,
        d_model=8,
        # In one layer the keys and values of a prompt do not depend on what it sees.
        num_layers=1 if prompt_sees_target else 2,
        num_heads=2,
        d_ff=16,
        d_condition=4,
        prompt_sees_target=prompt_sees_target,
        reads_time=reads_time,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The time has 256 features, so that larger weights would not be smooth enough for quadratures.
            scale = 0.03 if "embedding.input" in name else 0.6
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.double().eval()


class RatesNetwork(nn.Module):
    """A network that gives the rates of a process without prompts, for one distribution of texts."""

    def __init__(self, rates: Rates, longest: int, num_tokens: int) -> None:
        super().__init__()
        self.rates, self.longest, self.num_tokens = rates, longest, num_tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        time: Tensor | Callable[[Tensor], Tensor],
        positions: Tensor,
    ) -> DIDOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        order = position_ids.masked_fill(~attention_mask, 10**6).argsort(1)
        states = [
            tuple(ids[2:size])
            for ids, size in zip(
                input_ids.gather(1, order).tolist(), attention_mask.sum(1).tolist(), strict=True
            )
        ]
        lengths = torch.full((len(states), self.longest + 1), -math.inf, dtype=torch.float64)
        for row, text in enumerate(states):
            for number, mass in enumerate(self.rates.numbers(text)):
                if mass > 0:
                    lengths[row, number] = math.log(mass / math.comb(len(text) + number, number))
        u = (time(lengths) if callable(time) else time).numpy()
        logits = torch.full((*input_ids.shape, FIRST + self.num_tokens), -math.inf, dtype=torch.float64)
        rows_of: defaultdict[Text, list[int]] = defaultdict(list)
        for row, text in enumerate(states):
            rows_of[text].append(row)
        for text, rows in rows_of.items():
            for (slot, token), chance in self.rates.insert(text, u[rows]).items():
                column = order[rows, slot + 1]
                logits[rows, column, token] = torch.tensor(chance).log()
        return DIDOutput(token_logits=logits.flatten(0, 1)[positions], length_logits=lengths)


def batch_of(text: Text, kept: Sequence[int], u: Array, longest: int, prompt: Text = ()) -> DIDBatch:
    """One rest of a text at several times, a row each."""
    rows = len(u)
    rest, pairs = rest_of(text, kept), deleted_pairs(text, kept)
    before = (CLS, *prompt)
    ids = torch.tensor([[*before, BOS, *rest]]).repeat(rows, 1)
    open_slots = torch.arange(ids.shape[1]).repeat(rows, 1) >= len(before)
    scored = open_slots & (len(pairs) > 0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "open_slots": open_slots,
        "target_start": torch.full((rows,), 1 + len(before)),
        "scored_row": scored.nonzero()[:, 0],
        "scored_column": scored.nonzero()[:, 1],
        "num_scored": scored.sum(1).tolist(),
        "target_row": torch.arange(rows).repeat_interleave(len(pairs)),
        "target_slot": torch.tensor([len(before) + slot for slot, _ in pairs] * rows, dtype=torch.int64),
        "target_token": torch.tensor([token for _, token in pairs] * rows, dtype=torch.int64),
        "num_dropped": torch.full((rows,), len(pairs)),
        "num_missing": torch.full((rows,), len(text)),
        "most_missing": torch.full((rows,), longest - len(rest)),
        "time": torch.tensor(u),
        "num_draws": torch.tensor(1),
    }


def total_variation(distribution: dict[Text, float], other: dict[Text, float]) -> float:
    every = {*distribution, *other}
    return sum(abs(distribution.get(text, 0.0) - other.get(text, 0.0)) for text in every) / 2


def chi_square(found: dict[Text, int], distribution: dict[Text, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; texts of probability 0 must not be found."""
    number = sum(found.values())
    possible = {text for text, probability in distribution.items() if probability > 1e-12}
    assert set(found) <= possible, f"impossible texts: {set(found) - possible}"
    statistic = sum(
        (found.get(text, 0) - number * distribution[text]) ** 2 / (number * distribution[text])
        for text in possible
    )
    return statistic, len(possible) - 1
