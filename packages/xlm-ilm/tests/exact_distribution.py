"""The exact distribution of the insertion chain over tiny vocabularies, by enumeration in plain Python.

Shares no code with the package: states are tuples, batches are filled cell by cell.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xlm_ilm import ILM, ILMBatch, ILMOutput

PAD, CLS, BOS, FIRST = 0, 1, 2, 3
SPECIAL = (PAD, CLS, BOS)

Text = tuple[int, ...]


class Cell(NamedTuple):
    """A token of a state, and whether the slot on its right is open."""

    token: int
    is_open: bool


State = tuple[Cell, ...]
"""BOS and the target as it is; BOS comes first."""
Pair = tuple[int, int]
"""Number of a slot, 0 being that of BOS, and a token."""
START: State = (Cell(BOS, True),)


@dataclass(frozen=True)
class Chain:
    """Probability of stopping, and of each insertion if the chain continues, in a state."""

    stop: Callable[[State], float]
    insert: Callable[[State], dict[Pair, float]]


def texts(num_tokens: int, longest: int) -> list[Text]:
    ids = range(FIRST, FIRST + num_tokens)
    return [text for length in range(longest + 1) for text in itertools.product(ids, repeat=length)]


def text_of(state: State) -> Text:
    return tuple(cell.token for cell in state[1:])


def all_open(text: Text) -> State:
    return START + tuple(Cell(token, True) for token in text)


def inserted(state: State, pairs: Sequence[Pair]) -> State:
    """The state after insertions into distinct slots of it."""
    after: list[Cell] = []
    for slot, cell in enumerate(state):
        after.append(cell)
        after.extend(Cell(token, True) for chosen, token in pairs if chosen == slot)
    return tuple(after)


Step = Callable[[dict[Pair, float], int], dict[tuple[Pair, ...], float]]
"""Distribution of the pairs of one evaluation, at most so many, from the probabilities of single ones."""


def final_distribution(
    chain: Chain, start: State, budget: int, insertions_per_step: int = 1, step: Step | None = None
) -> dict[Text, float]:
    """Distribution of the text that the chain ends with, summed over all histories."""
    step = draws if step is None else step
    reached: dict[State, float] = {start: 1.0}
    distribution: defaultdict[Text, float] = defaultdict(float)
    for size in range(len(start), len(start) + budget + 1):
        for state, mass in [item for item in reached.items() if len(item[0]) == size]:
            left = budget - (size - len(start))
            stop = 1.0 if left == 0 or not any(cell.is_open for cell in state) else chain.stop(state)
            distribution[text_of(state)] += mass * stop
            if stop < 1:
                for pairs, probability in step(chain.insert(state), min(insertions_per_step, left)).items():
                    after = inserted(state, pairs)
                    reached[after] = reached.get(after, 0.0) + mass * (1 - stop) * probability
    return dict(distribution)


def draws(insert: dict[Pair, float], number: int) -> dict[tuple[Pair, ...], float]:
    """Distribution of drawing pairs one after another, each from the slots not taken yet."""
    if number == 0 or not insert:
        return {(): 1.0}
    total = sum(insert.values())
    result: defaultdict[tuple[Pair, ...], float] = defaultdict(float)
    for pair, weight in insert.items():
        rest = {other: value for other, value in insert.items() if other[0] != pair[0]}
        for following, probability in draws(rest, number - 1).items():
            result[pair, *following] += weight / total * probability
    return dict(result)


def ranked(kind: str, quota: str, bound: float) -> Step:
    """The best slots, as many as a quota of this bound takes, each with a token drawn for it."""

    def number_of(scores: list[float]) -> int:
        if quota == "count":
            return int(bound)
        if quota == "threshold":
            return max(sum(score > bound for score in scores), 1)
        lacks = [(0.0 if kind == "entropy" else 1.0) - score for score in scores]
        return max(sum(sum(lacks[: place + 1]) - lacks[place] <= bound for place in range(len(lacks))), 1)

    def step(insert: dict[Pair, float], most: int) -> dict[tuple[Pair, ...], float]:
        mass: defaultdict[int, float] = defaultdict(float)
        for (slot, _), probability in insert.items():
            mass[slot] += probability
        tokens = {
            slot: {token: value / mass[slot] for (place, token), value in insert.items() if place == slot}
            for slot in mass
        }
        scores = {slot: _score(kind, mass[slot] / max(mass.values()), tokens[slot]) for slot in mass}
        order = sorted(mass, key=lambda slot: (-scores[slot], slot))
        taken = order[: min(number_of([scores[slot] for slot in order]), most)]
        result: dict[tuple[Pair, ...], float] = {}
        for chosen in itertools.product(*(tokens[slot].items() for slot in taken)):
            pairs = tuple((slot, token) for slot, (token, _) in zip(taken, chosen, strict=True))
            result[pairs] = math.prod(probability for _, probability in chosen)
        return result

    return step


def _score(kind: str, share: float, tokens: dict[int, float]) -> float:
    ordered = sorted(tokens.values(), reverse=True)
    if kind == "entropy":
        return sum(p * math.log(p) for p in ordered) + math.log(share)
    return (ordered[0] if kind == "top_prob" else ordered[0] - ordered[1]) * share


def probability_of(chain: Chain, start: State, target: State) -> float:
    """Probability that the chain ends in ``target``, as the sum over all orders of insertion."""

    @cache
    def reach(state: State) -> float:
        if len(state) <= len(start):
            return float(state == start)
        total = 0.0
        for before in {state[:place] + state[place + 1 :] for place in range(1, len(state))}:
            for pair, probability in chain.insert(before).items():
                if inserted(before, [pair]) == state:
                    total += reach(before) * (1 - chain.stop(before)) * probability
        return total

    return reach(target) * chain.stop(target)


def network_chain(model: nn.Module, num_tokens: int, prompt: Text = ()) -> Chain:
    """The chain of a network that sees one state at a time, unpadded and in the order of the text."""

    @cache
    def evaluate(state: State) -> tuple[float, dict[Pair, float]]:
        row = torch.tensor([[CLS, *prompt, *(cell.token for cell in state)]])
        is_prompt = torch.tensor([[False, *(True for _ in prompt), *(False for _ in state)]])
        with torch.no_grad():
            output: ILMOutput = model(row) if model.prompt_sees_target else model(row, prompt=is_prompt)
        scores = {
            (slot, token): math.exp(float(output.token_logits[0, 1 + len(prompt) + slot, token]))
            for slot, cell in enumerate(state)
            for token in range(FIRST, FIRST + num_tokens)
            if cell.is_open
        }
        total = sum(scores.values())
        stop, *others = [math.exp(float(logit)) for logit in output.stop_logits[0]]
        return stop / (stop + sum(others)), {pair: score / total for pair, score in scores.items()}

    return Chain(stop=lambda state: evaluate(state)[0], insert=lambda state: evaluate(state)[1])


def random_network(
    num_tokens: int, *, seed: int, num_length_classes: int | None = None, prompt_sees_target: bool = True
) -> ILM:
    """A small network whose insertions and stops are far from uniform."""
    model = ILM(
        vocab_size=FIRST + num_tokens,
        d_model=8,
        # In one layer the keys and values of a prompt do not depend on what it sees.
        num_layers=1 if prompt_sees_target else 2,
        num_heads=2,
        d_ff=16,
        head="stop" if num_length_classes is None else "length",
        num_length_classes=num_length_classes,
        prompt_sees_target=prompt_sees_target,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return model.double().eval()


class Dropped(NamedTuple):
    """One outcome of dropping: its probability, the survivors, the dropped tokens with their slots."""

    probability: float
    survivors: State
    pairs: tuple[Pair, ...]


def all_drops(text: Text, fixed: Sequence[bool] | None = None) -> list[Dropped]:
    """Every subset of the tokens that are not fixed, with probability 1 / (L + 1) / C(L, N)."""
    fixed = [False] * len(text) if fixed is None else fixed
    missing = [place for place, is_fixed in enumerate(fixed) if not is_fixed]
    result: list[Dropped] = []
    for number in range(len(missing) + 1):
        for dropped in itertools.combinations(missing, number):
            state: list[Cell] = [Cell(BOS, not fixed or not fixed[0])]
            pairs: list[Pair] = []
            for place, token in enumerate(text):
                if place in dropped:
                    pairs.append((len(state) - 1, token))
                else:
                    state.append(Cell(token, not fixed[place] or place + 1 in missing))
            probability = 1 / (len(missing) + 1) / math.comb(len(missing), number)
            result.append(Dropped(probability, tuple(state), tuple(pairs)))
    return result


def batch_of(drops: Sequence[Dropped], num_missing: Sequence[int], prompt: Text = ()) -> ILMBatch:
    """A batch with one row per drop."""
    width = 1 + len(prompt) + max(len(drop.survivors) for drop in drops)
    input_ids = torch.full((len(drops), width), PAD)
    open_slots = torch.zeros(len(drops), width, dtype=torch.bool)
    targets: list[tuple[int, int, int]] = []
    for row, drop in enumerate(drops):
        before = (CLS, *prompt)
        for column, token in enumerate((*before, *(cell.token for cell in drop.survivors))):
            input_ids[row, column] = token
        for slot, cell in enumerate(drop.survivors):
            open_slots[row, len(before) + slot] = cell.is_open
        targets += [(row, len(before) + slot, token) for slot, token in drop.pairs]
    table = torch.tensor(targets, dtype=torch.int64).reshape(-1, 3)
    scored = open_slots & torch.tensor([bool(drop.pairs) for drop in drops]).unsqueeze(1)
    return {
        "input_ids": input_ids,
        "attention_mask": input_ids != PAD,
        "open_slots": open_slots,
        "target_start": torch.full((len(drops),), 2 + len(prompt)),
        "scored_row": scored.nonzero()[:, 0],
        "scored_column": scored.nonzero()[:, 1],
        "num_scored": scored.sum(1).tolist(),
        "target_row": table[:, 0],
        "target_slot": table[:, 1],
        "target_token": table[:, 2],
        "num_dropped": torch.tensor([len(drop.pairs) for drop in drops]),
        "num_missing": torch.tensor(num_missing),
        "num_draws": torch.tensor(1),
    }


def optimum(distribution: dict[Text, float], weight: Callable[[int], float], num_tokens: int) -> Chain:
    """The minimiser of the expected loss: J*(k, v | z) = E[c / N | z, N > 0], stop*(z) = P(N = 0 | z).

    The posterior is that of p(x) weight(L) 1/(L + 1) 1/C(L, N).
    """
    stopping: defaultdict[State, float] = defaultdict(float)
    going_on: defaultdict[State, float] = defaultdict(float)
    insert: defaultdict[State, defaultdict[Pair, float]] = defaultdict(lambda: defaultdict(float))
    for text, probability in distribution.items():
        for drop in all_drops(text):
            mass = probability * weight(len(text)) * drop.probability
            stopping[drop.survivors] += mass * (not drop.pairs)
            going_on[drop.survivors] += mass * bool(drop.pairs)
            for pair in drop.pairs:
                insert[drop.survivors][pair] += mass / len(drop.pairs)

    def stop_at(state: State) -> float:
        total = stopping[state] + going_on[state]
        return stopping[state] / total if total > 0 else 1.0

    def insert_at(state: State) -> dict[Pair, float]:
        pairs = itertools.product(range(len(state)), range(FIRST, FIRST + num_tokens))
        total = going_on[state]
        return {pair: insert[state][pair] / total if total > 0 else 1.0 for pair in pairs}

    return Chain(stop=stop_at, insert=insert_at)


class TabularNetwork(nn.Module):
    """A network with a free parameter per state and action, set to a chain without given tokens."""

    def __init__(self, chain: Chain, num_tokens: int, longest: int) -> None:
        super().__init__()
        self.base, self.longest = num_tokens + 1, longest
        self.token_logits = nn.Parameter(
            torch.zeros(self.base**longest, longest + 1, FIRST + num_tokens, dtype=torch.float64)
        )
        self.stop_logits = nn.Parameter(torch.zeros(self.base**longest, 2, dtype=torch.float64))
        with torch.no_grad():
            for text in texts(num_tokens, longest):
                code = sum((token - FIRST + 1) * self.base**place for place, token in enumerate(text))
                stop = chain.stop(all_open(text))
                self.stop_logits[code] = torch.tensor([_log(stop), _log(1 - stop)], dtype=torch.float64)
                for (slot, token), probability in chain.insert(all_open(text)).items():
                    self.token_logits[code, slot, token] = _log(probability)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        positions: Tensor,
    ) -> ILMOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        slot = position_ids - 1
        digit = torch.where(attention_mask & (slot > 0), input_ids - FIRST + 1, 0)
        code = (digit * self.base ** (slot - 1).clamp(min=0)).sum(1)
        cells = self.token_logits[code.unsqueeze(1), slot.clamp(0, self.longest)]
        return ILMOutput(token_logits=cells.flatten(0, 1)[positions], stop_logits=self.stop_logits[code])


def _log(probability: float) -> float:
    return math.log(max(probability, 1e-300))


def total_variation(distribution: dict[Text, float], other: dict[Text, float]) -> float:
    return (
        sum(abs(distribution.get(text, 0.0) - other.get(text, 0.0)) for text in {*distribution, *other}) / 2
    )


def chi_square(found: dict[Text, int], distribution: dict[Text, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; texts of probability 0 must not be found."""
    number = sum(found.values())
    possible = {text for text, probability in distribution.items() if probability > 0}
    assert set(found) <= possible, f"impossible texts: {set(found) - possible}"
    statistic = sum(
        (found.get(text, 0) - number * distribution[text]) ** 2 / (number * distribution[text])
        for text in possible
    )
    return statistic, len(possible) - 1
