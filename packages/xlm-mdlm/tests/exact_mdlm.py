"""Masked diffusion over tiny vocabularies by enumeration, in plain Python and numpy.

Shares no code with the package. The cells of a row are a tuple of ids, MASK among them; a prediction gives
the probabilities of the tokens at a masked cell, given all cells.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from xlm_mdlm import MDLMBatch, MDLMPromptBatch

PAD, MASK, EOS, BOS, FIRST = range(5)

Cells = tuple[int, ...]
Prediction = Callable[[Cells, int], Mapping[int, float]]
Distribution = dict[Cells, float]


class TableNetwork(nn.Module):
    """Rows [BOS] and ``length`` cells: any network at all, with a table of logits for each state.

    Args:
        length: Cells.
        vocab_size: Number of ids.
        seed: Of the logits, drawn from N(0, 1.5^2).
    """

    def __init__(self, *, length: int, vocab_size: int, seed: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size**length, length + 1, vocab_size)
        table = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table, requires_grad=False)
        self.noises: list[list[float]] = []
        """The noise argument of each call of the network."""
        self.rows: list[int] = []
        """Rows of each call."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, noise: Tensor | None, *, positions: Tensor
    ) -> Tensor:
        assert attention_mask is None or attention_mask.all()
        assert (input_ids[:, 0] == BOS).all()
        self.noises.append([] if noise is None else noise.tolist())
        self.rows.append(len(input_ids))
        digits = self.vocab_size ** torch.arange(input_ids.shape[1] - 1)
        logits = self.table[(input_ids[:, 1:] * digits).sum(1)]
        return logits.flatten(0, 1)[positions]

    def prediction(self, possible_ids: Sequence[int]) -> Prediction:
        """What the network predicts where the ids are the possible ones."""
        table = self.table.detach().numpy()

        @cache
        def predict(cells: Cells, cell: int) -> Mapping[int, float]:
            code = sum(token * self.vocab_size**place for place, token in enumerate(cells))
            weights = {token: math.exp(table[code, cell + 1, token]) for token in possible_ids}
            total = sum(weights.values())
            return {token: weight / total for token, weight in weights.items()}

        return predict


def random_data(*, length: int, num_tokens: int, seed: int) -> Distribution:
    """A distribution of the data without any structure."""
    texts = list(itertools.product(range(FIRST, FIRST + num_tokens), repeat=length))
    masses = np.random.default_rng(seed).dirichlet(np.ones(len(texts)))
    return dict(zip(texts, masses.tolist(), strict=True))


def oracle(data: Distribution) -> Prediction:
    """The best prediction: the posterior of the token under the data, given the cells that are not masked."""

    @cache
    def predict(cells: Cells, cell: int) -> Mapping[int, float]:
        weights: defaultdict[int, float] = defaultdict(float)
        for text, mass in data.items():
            if all(known in (MASK, token) for known, token in zip(cells, text, strict=True)):
                weights[text[cell]] += mass
        total = sum(weights.values())
        return {token: weight / total for token, weight in weights.items()}

    return predict


def with_tokens(cells: Cells, tokens: Mapping[int, int]) -> Cells:
    return tuple(tokens.get(place, token) for place, token in enumerate(cells))


def masks(cells: Cells) -> list[int]:
    return [place for place, token in enumerate(cells) if token == MASK]


def subsets(items: Sequence[int]) -> list[tuple[int, ...]]:
    return [subset for size in range(len(items) + 1) for subset in itertools.combinations(items, size)]


def written(predict: Prediction, cells: Cells, places: Sequence[int]) -> Iterator[tuple[Cells, float]]:
    """The cells after writing independent tokens into some of them, with their probabilities."""
    options = [predict(cells, place).items() for place in places]
    for drawn in itertools.product(*options):
        tokens = {place: token for place, (token, _) in zip(places, drawn, strict=True)}
        yield with_tokens(cells, tokens), math.prod(value for _, value in drawn)


def chain_distribution(
    predict: Prediction,
    start: Cells,
    unmask: Sequence[float],
    remask: Sequence[float] | None = None,
) -> Distribution:
    """Distribution after steps in which each masked cell is written with probability ``unmask[step]``,
    independently.

    Each cell that is not masked, and was at the start, is masked again with probability ``remask[step]``.
    """
    mutable = masks(start)
    distribution: Distribution = {start: 1.0}
    for step, (up, down) in enumerate(zip(unmask, remask or [0.0] * len(unmask), strict=True)):
        after: defaultdict[Cells, float] = defaultdict(float)
        for cells, mass in distribution.items():
            masked = masks(cells)
            clean = [place for place in mutable if place not in masked]
            for places in subsets(masked):
                chosen = up ** len(places) * (1 - up) ** (len(masked) - len(places))
                for lost in subsets(clean):
                    kept = down ** len(lost) * (1 - down) ** (len(clean) - len(lost))
                    if chosen * kept == 0:
                        continue
                    for result, probability in written(predict, cells, places):
                        end = with_tokens(result, dict.fromkeys(lost, MASK))
                        after[end] += mass * chosen * kept * probability
        distribution = dict(after)
        assert math.isclose(sum(distribution.values()), 1.0, rel_tol=1e-12), f"step {step}"
    return distribution


def step_distribution(predict: Prediction, start: Cells, shares: Sequence[float]) -> Distribution:
    """Distribution when the step of each cell is drawn once for all, with probabilities ``shares``."""
    distribution: defaultdict[Cells, float] = defaultdict(float)
    places = masks(start)
    for steps in itertools.product(range(len(shares)), repeat=len(places)):
        current: Distribution = {start: math.prod(shares[step] for step in steps)}
        for now in sorted(set(steps)):
            group = [place for place, step in zip(places, steps, strict=True) if step == now]
            after: defaultdict[Cells, float] = defaultdict(float)
            for cells, mass in current.items():
                for result, probability in written(predict, cells, group):
                    after[result] += mass * probability
            current = dict(after)
        for cells, mass in current.items():
            distribution[cells] += mass
    return dict(distribution)


def any_order_distribution(predict: Prediction, start: Cells) -> Distribution:
    """Distribution when the cells are written one by one in a uniformly random order."""
    distribution: Distribution = {start: 1.0}
    for _ in masks(start):
        after: defaultdict[Cells, float] = defaultdict(float)
        for cells, mass in distribution.items():
            places = masks(cells)
            for place in places:
                for result, probability in written(predict, cells, [place]):
                    after[result] += mass * probability / len(places)
        distribution = dict(after)
    return distribution


def bound_by_order(predict: Prediction, start: Cells, target: Cells) -> float:
    """E over orders of -log p(target | order), order by order."""
    orders = list(itertools.permutations(masks(start)))
    total = 0.0
    for order in orders:
        cells = start
        for place in order:
            total -= math.log(predict(cells, place)[target[place]])
            cells = with_tokens(cells, {place: target[place]})
    return total / len(orders)


def total_variation(distribution: Distribution, other: Distribution) -> float:
    return (
        sum(abs(distribution.get(cells, 0.0) - other.get(cells, 0.0)) for cells in {*distribution, *other})
        / 2
    )


def assert_drawn_from(texts: Sequence[Cells], distribution: Distribution) -> None:
    """Pearson's chi-square test at the level of 0.1 %, with the quantile of Wilson and Hilferty.

    Texts expected fewer than 10 times count as one.
    """
    found, number = Counter(texts), len(texts)
    assert set(found) <= set(distribution), f"impossible texts: {set(found) - set(distribution)}"
    rare = {cells for cells, mass in distribution.items() if number * mass < 10}
    classes = [[cells] for cells in distribution if cells not in rare] + ([list(rare)] if rare else [])
    statistic = 0.0
    for members in classes:
        expected = sum(number * distribution[cells] for cells in members)
        statistic += (sum(found[cells] for cells in members) - expected) ** 2 / expected
    freedom = len(classes) - 1
    assert freedom > 0, "a distribution with a single text, or too few draws"
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


def masked_batch(
    target: Cells,
    masked_places: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    may_end: bool = False,
    noise: Sequence[float] | None = None,
) -> MDLMBatch:
    """One row per set of masked cells, all of the same target."""
    rows, length = len(masked_places), len(target)
    masked = torch.tensor(
        [[False, *(place in places for place in range(length))] for places in masked_places]
    )
    cells = torch.arange(length + 1).expand(rows, -1) > 0
    target_ids = torch.tensor([[BOS, *target]]).repeat(rows, 1)
    batch: MDLMBatch = {
        "input_ids": target_ids.masked_fill(masked, MASK),
        "attention_mask": torch.ones(rows, length + 1, dtype=torch.bool),
        "target_ids": target_ids,
        "masked": masked,
        "masked_row": masked.nonzero()[:, 0],
        "masked_column": masked.nonzero()[:, 1],
        "may_end": cells & may_end,
        "prompt_length": torch.ones(rows, dtype=torch.int64),
        "weight": torch.tensor(weights, dtype=torch.float64),
        "num_eligible": torch.full((rows,), length),
        "num_tokens": torch.full((rows,), length),
        "models_length": torch.full((rows,), may_end),
        "num_draws": torch.tensor(1),
    }
    if noise is not None:
        batch["noise"] = torch.tensor(noise, dtype=torch.float64)
    return batch


def prompt_batch(start: Cells, rows: int, *, may_end: bool = False) -> MDLMPromptBatch:
    input_ids = torch.tensor([[BOS, *start]]).repeat(rows, 1)
    cells = torch.arange(len(start) + 1).expand(rows, -1) > 0
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(cells),
        "masked": input_ids == MASK,
        "may_end": cells & may_end,
        "target_start": torch.ones(rows, dtype=torch.int64),
    }
