"""The distributions of the samplers over tiny vocabularies, by enumeration in plain Python.

Shares no code with the package. The cells of a row are a tuple of ids, MASK among them; a prediction gives
the probabilities of the tokens at a masked cell, given all cells. The noise is alpha(t) = 1 - t.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from xlm.modules import Polynomial, TokenSampling
from xlm.modules.samplers import Denoiser, Filled, PromptBatch, Sampler, Text, fill
from xlm.modules.writer import Draw

MASK, END, FIRST = range(3)
VOCABULARY = 5

Cells = tuple[int, ...]
Tokens = Mapping[int, float]
Prediction = Callable[[Cells, int], Tokens]
Distribution = dict[Cells, float]


class Vocabulary:
    """MASK is never possible, END where a text may end."""

    def restrict(self, logits: Tensor, may_end: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, MASK] = -math.inf
        logits[~may_end, END] = -math.inf
        return logits

    def ends(self, ids: Tensor) -> Tensor:
        return ids == END


@dataclass
class TableNetwork:
    """Any network at all: logits drawn from N(0, scale^2) for each state of the cells."""

    length: int = 3
    seed: int = 5
    scale: float = 1.5
    table: Tensor = field(init=False)
    rows: list[int] = field(default_factory=list[int])
    """Rows of each call."""
    logits: list[int] = field(default_factory=list[int])
    """Cells of each call."""
    alphas: list[list[float]] = field(default_factory=list[list[float]])

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (VOCABULARY**self.length, self.length, VOCABULARY)
        self.table = self.scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, alpha: Tensor, positions: Tensor) -> Tensor:
        assert attention_mask.all()
        self.rows.append(len(input_ids))
        self.logits.append(len(positions))
        self.alphas.append(alpha.tolist())
        digits = VOCABULARY ** torch.arange(self.length)
        return self.table[(input_ids * digits).sum(1)].flatten(0, 1)[positions]

    def prediction(self, *, may_end: bool = False) -> Prediction:
        table = self.table.tolist()
        ids = [END] * may_end + list(range(FIRST, VOCABULARY))

        @cache
        def predict(cells: Cells, cell: int) -> Tokens:
            code = sum(token * VOCABULARY**place for place, token in enumerate(cells))
            weights = {token: math.exp(table[code][cell][token]) for token in ids}
            total = sum(weights.values())
            return {token: weight / total for token, weight in weights.items()}

        return predict


def prompt_batch(start: Cells, rows: int, *, may_end: bool = False) -> PromptBatch:
    input_ids = torch.tensor([start]).repeat(rows, 1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids, dtype=torch.bool),
        "masked": input_ids == MASK,
        "may_end": torch.full_like(input_ids, may_end, dtype=torch.bool),
        "target_start": torch.zeros(rows, dtype=torch.int64),
    }


def run(
    sampler: Sampler,
    network: TableNetwork,
    start: Cells,
    seeds: Tensor,
    *,
    may_end: bool = False,
    sampling: TokenSampling | None = None,
) -> tuple[list[Cells], Text, Filled]:
    """The texts of some rows, up to their ends."""
    text = Text.of(prompt_batch(start, len(seeds), may_end=may_end), Vocabulary())
    denoiser = Denoiser(network, Vocabulary(), Polynomial(1.0), MASK)
    filled = fill(text, sampler, denoiser, Draw(sampling or TokenSampling()), seeds)
    ids, lengths = text.targets(END)
    rows = zip(ids.tolist(), lengths.tolist(), strict=True)
    return [tuple(row[:length]) for row, length in rows], text, filled


@dataclass(frozen=True)
class Rule:
    """A sampler as a table says it."""

    rank: str
    quota: str
    revise: str = "none"
    constants: Mapping[str, float | str] = field(default_factory=dict[str, float | str])

    def __getattr__(self, name: str) -> float:
        try:
            return float(self.constants[name])
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class State:
    """A row before a step."""

    cells: Cells
    step: int = 1
    before: tuple[Cells, ...] = ()
    """The cells of the evaluations before."""
    memory: tuple[float, ...] = ()
    """Probability with which each cell was written, for the rule that remembers it."""


def masks(cells: Cells) -> list[int]:
    return [place for place, token in enumerate(cells) if token == MASK]


def with_tokens(cells: Cells, tokens: Mapping[int, int]) -> Cells:
    return tuple(tokens.get(place, token) for place, token in enumerate(cells))


def joint(options: Mapping[int, Tokens]) -> Iterator[tuple[dict[int, int], float]]:
    """Independent tokens of some cells with their probabilities."""
    for drawn in itertools.product(*(tokens.items() for tokens in options.values())):
        tokens = {place: token for place, (token, _) in zip(options, drawn, strict=True)}
        yield tokens, math.prod(value for _, value in drawn)


def subsets(items: list[int]) -> list[tuple[int, ...]]:
    return [subset for size in range(len(items) + 1) for subset in itertools.combinations(items, size)]


def entropy(tokens: Tokens) -> float:
    return -sum(value * math.log(value) for value in tokens.values())


def score(rank: str, tokens: Tokens, place: int) -> float:
    largest, second, *_ = sorted(tokens.values(), reverse=True)
    scores = {
        "left_to_right": -float(place),
        "top_prob": largest,
        "margin": largest - second,
        "entropy": -entropy(tokens),
    }
    return scores[rank]


def rankings(
    rule: Rule, state: State, predict: Prediction
) -> Iterator[tuple[list[int], dict[int, float], dict[int, int] | None, float]]:
    """Orders of the masked cells with their scores, the drawn tokens if these decide, and the probability."""
    places = masks(state.cells)
    options = {place: predict(state.cells, place) for place in places}
    if rule.rank == "random":
        orders = list(itertools.permutations(places))
        for order in orders:
            yield list(order), {}, None, 1 / len(orders)
    elif rule.rank == "drawn":
        for tokens, mass in joint(options):
            scores = {place: options[place][tokens[place]] for place in places}
            yield sorted(places, key=lambda place: -scores[place]), scores, tokens, mass
    else:
        scores = {place: score(rule.rank, options[place], place) for place in places}
        yield sorted(places, key=lambda place: -scores[place]), scores, None, 1.0


def even_count(rule: Rule, num_left: int, step: int) -> int:
    if "num_steps" not in rule.constants:
        return 1
    return math.ceil(num_left / (rule.num_steps - step + 1))


def has_settled(rule: Rule, state: State, predict: Prediction, place: int) -> bool:
    states = [*state.before, state.cells][-int(rule.evaluations) - 1 :]
    if len(states) <= rule.evaluations or max(predict(state.cells, place).values()) <= rule.tau:
        return False
    for old, new in itertools.pairwise(states):
        now, then = predict(new, place), predict(old, place)
        if sum(p * math.log(p / then[token]) for token, p in now.items()) >= rule.eps:
            return False
    return True


def prefixes(
    rule: Rule, state: State, predict: Prediction, order: list[int], scores: dict[int, float]
) -> Iterator[tuple[list[int], float]]:
    """What the quota takes of a ranking, with the probability."""
    if rule.quota == "count":
        yield order[: even_count(rule, len(order), state.step)], 1.0
    elif rule.quota == "hitting":
        yield order[:1], 1.0
    elif rule.quota == "hazard":
        chance = 1 / (rule.num_steps - state.step + 1)
        for number in range(len(order) + 1):
            binomial = math.comb(len(order), number) * chance**number * (1 - chance) ** (len(order) - number)
            if binomial > 0:
                yield order[:number], binomial
    elif rule.quota == "threshold":
        yield [place for place in order if scores[place] > rule.tau] or order[:1], 1.0
    elif rule.quota == "budget":
        lacks = [entropy(predict(state.cells, place)) for place in order]
        if rule.constants.get("uncertainty") == "rank":
            lacks = [(0.0 if rule.rank == "entropy" else 1.0) - scores[place] for place in order]
        fits = [
            number
            for number in range(1, len(order) + 1)
            if number == 1 or sum(lacks[:number]) - max(lacks[:number]) <= rule.gamma
        ]
        yield order[: max(fits)], 1.0
    else:
        ready = [place for place in order if has_settled(rule, state, predict, place)]
        yield ready or order[: int(rule.fallback)], 1.0


def sigma(rule: Rule, step: int) -> tuple[float, float]:
    """Probability of masking again, and of writing."""
    # Not 1 - step / N, which rounds a time off the border of a loop.
    before, after = (rule.num_steps - step + 1) / rule.num_steps, (rule.num_steps - step) / rule.num_steps
    alpha_t, alpha_s = 1 - before, 1 - after
    if rule.revise == "remdm_loop":
        alpha_t, alpha_s = (
            1 - time * (1 - rule.alpha_on) / rule.t_off
            if time <= rule.t_off
            else min(rule.alpha_on * (1 - time) / (1 - rule.t_on), rule.alpha_on)
            for time in (before, after)
        )
        remask = rule.eta if before <= rule.t_on and after >= rule.t_off else 0.0
    else:
        largest = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        remask = {
            "remdm_cap": lambda: min(rule.eta, largest),
            "remdm_rescale": lambda: rule.eta * largest,
            "remdm_switch": lambda: min(rule.eta, largest) if before < rule.t_on else 0.0,
            "remdm_conf": lambda: largest,
        }[rule.revise]()
    if step == rule.num_steps:
        return 0.0, 1.0
    kept = 0.0 if rule.revise == "remdm_conf" else remask
    return remask, (alpha_s - (1 - kept) * alpha_t) / (1 - alpha_t)


def remasked(rule: Rule, start: Cells, state: State, predict: Prediction) -> Iterator[tuple[State, float]]:
    """A step in which each cell is written or masked again by itself."""
    remask, unmask = sigma(rule, state.step)
    masked = masks(state.cells)
    clean = [place for place in masks(start) if place not in masked]
    down = dict.fromkeys(clean, remask)
    if rule.revise == "remdm_conf":
        weights = {place: math.exp(-state.memory[place]) for place in clean}
        down = {place: remask * weight / sum(weights.values()) for place, weight in weights.items()}
    for places in subsets(masked):
        up = unmask ** len(places) * (1 - unmask) ** (len(masked) - len(places))
        options = {place: predict(state.cells, place) for place in places}
        for lost in subsets(clean):
            stay = math.prod(down[place] if place in lost else 1 - down[place] for place in clean)
            if up * stay == 0:
                continue
            for tokens, mass in joint(options):
                memory = list(state.memory or [0.0] * len(start))
                for place, token in tokens.items():
                    memory[place] = options[place][token]
                cells = with_tokens(state.cells, {**tokens, **dict.fromkeys(lost, MASK)})
                kept = tuple(memory) if rule.revise == "remdm_conf" else ()
                yield State(cells, state.step + 1, (), kept), up * stay * mass


def path_planned(
    rule: Rule, start: Cells, state: State, predict: Prediction
) -> Iterator[tuple[State, float]]:
    """A step of P2: all masked cells are drawn, the lowest scores are masked."""
    masked = masks(state.cells)
    clean = [place for place in masks(start) if place not in masked]
    number = len(masked) - even_count(rule, len(masked), state.step)
    written = {place: rule.eta * math.log(predict(state.cells, place)[state.cells[place]]) for place in clean}
    options = {place: predict(state.cells, place) for place in masked}
    for tokens, mass in joint(options):
        if rule.rank == "random":
            # The draws are uniform: only their order counts, and none is above 0, the score of eta = 0.
            assert rule.eta == 0
            lowest = [(set(subset), 1.0) for subset in itertools.combinations(masked, number)]
        else:
            own = {
                place: math.log(
                    options[place][tokens[place]] if rule.rank == "drawn" else max(option.values())
                )
                for place, option in options.items()
            }
            ranked = sorted([*masked, *clean], key=lambda place: {**own, **written}[place])
            lowest = [(set(ranked[:number]), 1.0)]
        for low, _ in lowest:
            now = {place: token for place, token in tokens.items() if place not in low}
            cells = with_tokens(state.cells, {**dict.fromkeys(low, MASK), **now})
            yield State(cells, state.step + 1), mass / len(lowest)


def after(rule: Rule, start: Cells, state: State, predict: Prediction) -> Iterator[tuple[State, float]]:
    if rule.revise == "p2":
        yield from path_planned(rule, start, state, predict)
        return
    if rule.revise != "none":
        yield from remasked(rule, start, state, predict)
        return
    before = (*state.before, state.cells) if rule.quota == "stable" else ()
    for order, scores, drawn, mass in rankings(rule, state, predict):
        for places, share in prefixes(rule, state, predict, order, scores):
            options = {place: predict(state.cells, place) for place in places}
            choices = joint(options) if drawn is None else [({place: drawn[place] for place in places}, 1.0)]
            for tokens, probability in choices:
                cells = with_tokens(state.cells, tokens)
                yield State(cells, state.step + 1, before), mass * share * probability


def distribution(rule: Rule, predict: Prediction, start: Cells) -> Distribution:
    """The distribution of the cells in the end."""
    states = {State(start): 1.0}
    result: defaultdict[Cells, float] = defaultdict(float)
    runs_on = rule.revise.startswith("remdm")
    while states:
        following: defaultdict[State, float] = defaultdict(float)
        for state, mass in states.items():
            if not masks(state.cells) and not (runs_on and state.step <= rule.num_steps):
                result[state.cells] += mass
                continue
            for now, probability in after(rule, start, state, predict):
                following[now] += mass * probability
        states = dict(following)
    assert math.isclose(sum(result.values()), 1.0, rel_tol=1e-12)
    return dict(result)


def up_to_end(cells: Distribution) -> Distribution:
    """The distribution of texts, which end at their first END."""
    texts: defaultdict[Cells, float] = defaultdict(float)
    for row, mass in cells.items():
        texts[row[: row.index(END)] if END in row else row] += mass
    return dict(texts)


def assert_drawn_from(texts: list[Cells], expected: Distribution) -> None:
    """Pearson's chi-square test at the level of 0.1 %, with the quantile of Wilson and Hilferty.

    Texts expected fewer than 10 times count as one.
    """
    found = defaultdict[Cells, int](int)
    for text in texts:
        found[text] += 1
    assert set(found) <= set(expected), f"impossible texts: {set(found) - set(expected)}"
    rare = [cells for cells, mass in expected.items() if len(texts) * mass < 10]
    classes = [[cells] for cells in expected if cells not in rare] + ([rare] if rare else [])
    statistic = 0.0
    for members in classes:
        mean = sum(len(texts) * expected[cells] for cells in members)
        statistic += (sum(found[cells] for cells in members) - mean) ** 2 / mean
    freedom = len(classes) - 1
    assert freedom > 0, "a distribution with a single text, or too few draws"
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


def total_variation(one: Distribution, other: Distribution) -> float:
    return sum(abs(one.get(cells, 0.0) - other.get(cells, 0.0)) for cells in {*one, *other}) / 2
