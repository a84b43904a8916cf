"""The distribution of the samplers by enumeration, in plain Python: a dictionary from states to
probabilities."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .exact_flexmdm import FIRST, MASK, Array, Index, State, Tables, Text


@dataclass(frozen=True)
class Step:
    """A step of a sampler: the time input, the chance of unmasking, and the mean number of masks per g."""

    time: float
    unmasking: float
    insertion: float


def steps_of(
    num_steps: int,
    alpha: Callable[[float], float],
    beta: Callable[[float], float],
    hazards: tuple[Callable[[float], float], Callable[[float], float]] | None = None,
) -> list[Step]:
    """The steps with hazards integrated, or with the given hazards of insertion and unmasking held."""
    steps: list[Step] = []
    for n in range(num_steps - 1):
        t, end = n / num_steps, (n + 1) / num_steps
        if hazards is None:
            insertion = (alpha(end) - alpha(t)) / (1 - alpha(t))
            unmasking = (beta(end) - beta(t)) / (1 - beta(t))
        else:
            insertion = hazards[0](t) / num_steps
            unmasking = 1 - float(np.exp(-hazards[1](t) / num_steps))
        steps.append(Step(t, unmasking, insertion))
    return [*steps, Step(1 - 1 / num_steps, 1.0, 0.0)]


def sampler_distribution(
    index: Index,
    tables: Callable[[float], Tables],
    steps: Sequence[Step],
    *,
    longest: int,
    score: Callable[[int, Array], float] | None = None,
    more: Callable[[list[float], list[Array]], int] | None = None,
) -> dict[Text, float]:
    """Distribution of the text that the sampler ends with, summed over all histories.

    Without a ``score`` each mask is unmasked by itself; with one, of cell and distribution, as many with the
    highest, or ``more`` of those with these scores and distributions, the best first.
    """
    distribution: dict[State, float] = {(): 1.0}
    for step in steps:
        table = tables(step.time)
        after: defaultdict[State, float] = defaultdict(float)
        for state, mass in distribution.items():
            number = index.numbers.get(state, index.size - 1)
            slots = np.arange(len(state) + 1).clip(max=index.longest)
            cells = np.arange(len(state)).clip(max=index.longest - 1)
            written = _unmasked(state, table.distributions[number][cells], step.unmasking, score, more)
            gaps, left = table.gaps[number][slots], longest - len(state)
            means = gaps * min(1.0, left / max(gaps.sum(), 1e-300)) * step.insertion
            counts = _insertions(tuple(means.tolist()), left)
            for (text, first), (added, second) in itertools.product(written.items(), counts.items()):
                after[_inserted(text, added)] += mass * first * second
        distribution = {state: mass for state, mass in after.items() if mass > 1e-13}
    return distribution


def _unmasked(
    state: State,
    distributions: Array,
    chance: float,
    score: Callable[[int, Array], float] | None,
    more: Callable[[list[float], list[Array]], int] | None,
) -> dict[State, float]:
    cells = [cell for cell, token in enumerate(state) if token == MASK]
    result: defaultdict[State, float] = defaultdict(float)
    for flags in itertools.product((False, True), repeat=len(cells)):
        number = sum(flags)
        probability = chance**number * (1 - chance) ** (len(cells) - number)
        if probability == 0:
            continue
        chosen = [cell for cell, flag in zip(cells, flags, strict=True) if flag]
        if score is not None:
            ranked = sorted(cells, key=lambda cell: (-score(cell, distributions[cell]), cell))
            if more is not None and number > 0:
                scores = [score(cell, distributions[cell]) for cell in ranked]
                number = max(number, more(scores, [distributions[cell] for cell in ranked]))
            chosen = ranked[:number]
        for values in itertools.product(range(distributions.shape[1]), repeat=number):
            text = list(state)
            mass = probability
            for cell, value in zip(chosen, values, strict=True):
                text[cell] = FIRST + value
                mass *= float(distributions[cell, value])
            result[tuple(text)] += mass
    return dict(result)


def _insertions(means: tuple[float, ...], budget: int) -> dict[tuple[int, ...], float]:
    """Poisson numbers; of those beyond the budget some are dropped, all alike."""
    total = sum(means)
    if total == 0:
        return {(0,) * len(means): 1.0}
    masses = [math.exp(-total) * total**k / math.factorial(k) for k in range(budget)]
    masses.append(1 - sum(masses))
    result: dict[tuple[int, ...], float] = {}
    for drawn in itertools.product(range(budget + 1), repeat=len(means)):
        number = sum(drawn)
        if number <= budget:
            orders = math.factorial(number) / math.prod(math.factorial(k) for k in drawn)
            slots = math.prod((mean / total) ** k for mean, k in zip(means, drawn, strict=True))
            result[drawn] = masses[number] * orders * slots
    return result


def _inserted(state: State, counts: Sequence[int]) -> State:
    parts = [(MASK,) * count for count in counts]
    return sum(((*part, token) for part, token in zip(parts, state, strict=False)), ()) + parts[-1]


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
