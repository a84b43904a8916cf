"""The exact distribution of the sampler with steps over tiny vocabularies, by enumeration."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from .exact_editflow import Action, Rates, Text


def after_step(
    rates: Rates, reached: dict[Text, float], u: float, chance: float, limit: int, *, is_poisson: bool = False
) -> dict[Text, float]:
    """The distribution after a step in which each pending edit is made with a probability."""
    found: defaultdict[Text, float] = defaultdict(float)
    for text, mass in reached.items():
        table = {action: float(rate[0]) for action, rate in rates(text, np.array([u])).items()}

        def numbers(mean: float, room: int) -> Iterator[tuple[int, float]]:
            """Insertions into a slot: each number below the room, and the room or more."""
            if not is_poisson:
                mean = min(mean, 1.0)
                yield from ((0, 1 - mean), (1, mean)) if room > 0 else ((0, 1.0),)
                return
            chances = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(room)]
            yield from enumerate(chances)
            yield room, 1 - sum(chances)

        def grow(
            place: int,
            done: Text,
            mass: float,
            room: int,
            text: Text = text,
            table: dict[Action, float] = table,
        ) -> None:
            """Insert into the gap of a place, then edit its token."""
            gap = {
                token: rate for (kind, at, token), rate in table.items() if (kind, at) == ("insert", place)
            }
            total = sum(gap.values())
            for number, probability in numbers(chance * total, room) if total > 0 else ((0, 1.0),):
                for chosen in itertools.product(gap, repeat=number):
                    part = mass * probability * math.prod(gap[token] / total for token in chosen)
                    if part == 0:
                        continue
                    if place == len(text):
                        found[(*done, *chosen)] += part
                        continue
                    stays = 1.0
                    for (kind, at, token), rate in table.items():
                        if kind != "insert" and at == place:
                            stays -= chance * rate
                            written = () if kind == "delete" else (token,)
                            grow(place + 1, (*done, *chosen, *written), part * chance * rate, room - number)
                    grow(place + 1, (*done, *chosen, text[place]), part * stays, room - number)

        grow(0, (), mass, limit - len(text))
    return dict(found)


def deleted(reached: dict[Text, float], chance: float) -> dict[Text, float]:
    """The distribution after each token is deleted with a probability."""
    found: defaultdict[Text, float] = defaultdict(float)
    for text, mass in reached.items():
        for kept in itertools.product((False, True), repeat=len(text)):
            rest = tuple(token for token, stays in zip(text, kept, strict=True) if stays)
            found[rest] += mass * math.prod(1 - chance if stays else chance for stays in kept)
    return dict(found)


def generated_in_steps(
    rates: Rates,
    start: dict[Text, float],
    num_steps: int,
    limit: int,
    *,
    correction: float = 0.0,
    is_poisson: bool = False,
) -> dict[Text, float]:
    """The distribution of the sampler with N equal steps, with reverse moves towards nothing."""
    reached = start
    for step in range(num_steps):
        u, end = 1 - step / num_steps, 1 - (step + 1) / num_steps
        beyond = max(end - correction / num_steps, 0.0)
        reached = after_step(rates, reached, u, 1 - beyond / u, limit, is_poisson=is_poisson)
        if beyond < end:
            reached = deleted(reached, (end - beyond) / (1 - beyond))
    return reached
