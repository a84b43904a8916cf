"""Block diffusion over tiny vocabularies by enumeration, in plain Python and numpy.

Shares no code with the package. The state of a row is a tuple of ids: the clean blocks and one noisy block,
MASK among its cells. A prediction gives the probabilities of the tokens at a masked cell, given a state.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from xlm_bd3lm import BD3LMBatch, BD3LMPromptBatch

PAD, MASK, EOS, BOS, FIRST = range(5)

Cells = tuple[int, ...]
Prediction = Callable[[Cells, int], Mapping[int, float]]
Distribution = dict[Cells, float]


class TableNetwork(nn.Module):
    """Rows [BOS] and up to ``length`` cells: any network at all, a table of logits for what a cell can see.

    It sees a token by its position and its id, through the attention mask, and takes no cache.

    Args:
        length: Cells.
        num_tokens: Ids from FIRST on.
        seed: Of the logits, drawn from N(0, 1.5^2).
    """

    def __init__(self, *, length: int, num_tokens: int, seed: int) -> None:
        super().__init__()
        self.vocab_size, self.length = FIRST + num_tokens, length
        self.base = self.vocab_size + 1
        generator = torch.Generator().manual_seed(seed)
        shape = (self.base**length, length, self.vocab_size)
        table = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table, requires_grad=False)
        self.rows: list[int] = []
        """Rows of each call."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *, positions: Tensor
    ) -> Tensor:
        self.rows.append(len(input_ids))
        width = input_ids.shape[1]
        row, column = positions // width, positions % width
        place = position_ids - 1  # BOS stands at 0
        digits = torch.where(place >= 0, (input_ids + 1) * self.base ** place.clamp(min=0), 0)
        code = (attention_mask[row, column] * digits[row]).sum(1)
        return self.table[code, place[row, column]]

    def prediction(self, block_length: int, *, may_end: bool = False) -> Prediction:
        """What the network predicts, the softmax over the possible tokens."""
        table = self.table.detach().numpy()

        @cache
        def predict(cells: Cells, cell: int) -> Mapping[int, float]:
            code = sum((token + 1) * self.base**place for place, token in enumerate(cells))
            possible = list(range(FIRST, self.vocab_size))
            if may_end:
                possible += [EOS] if cell % block_length == 0 else [PAD, EOS]
            weights = {token: math.exp(table[code, cell, token]) for token in possible}
            total = sum(weights.values())
            return {token: weight / total for token, weight in weights.items()}

        return predict


def random_data(*, length: int, num_tokens: int, seed: int) -> Distribution:
    """A distribution of the data without any structure."""
    texts = list(itertools.product(range(FIRST, FIRST + num_tokens), repeat=length))
    masses = np.random.default_rng(seed).dirichlet(np.ones(len(texts)))
    return dict(zip(texts, masses.tolist(), strict=True))


def oracle(data: Distribution) -> Prediction:
    """The best prediction: the posterior of the token under the data, given the visible cells."""

    @cache
    def predict(cells: Cells, cell: int) -> Mapping[int, float]:
        weights: defaultdict[int, float] = defaultdict(float)
        for text, mass in data.items():
            if all(known in (MASK, token) for known, token in zip(cells, text, strict=False)):
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


def step(
    distribution: Distribution, predict: Prediction, chances: Callable[[int, int], float]
) -> Distribution:
    """Write a random set of the masked cells: one of n out of m has the probability ``chances(n, m)``."""
    after: defaultdict[Cells, float] = defaultdict(float)
    for cells, mass in distribution.items():
        places = masks(cells)
        for chosen in subsets(places):
            if (chance := chances(len(chosen), len(places))) > 0:
                for result, probability in written(predict, cells, chosen):
                    after[result] += mass * chance * probability
    return dict(after)


def any_order(predict: Prediction, start: Cells) -> Distribution:
    """The cells are written one by one in a uniformly random order."""
    distribution: Distribution = {start: 1.0}
    for _ in masks(start):
        distribution = step(distribution, predict, lambda n, m: 1 / m if n == 1 else 0.0)
    return distribution


def ancestral(predict: Prediction, start: Cells, num_steps: int) -> Distribution:
    """Each masked cell is written in step k of N with probability 1 / (N - k + 1): alpha falls linearly."""
    distribution: Distribution = {start: 1.0}
    for left in range(num_steps, 0, -1):
        up = 1 / left
        distribution = step(distribution, predict, lambda n, m, up=up: up**n * (1 - up) ** (m - n))
    return distribution


def block_by_block(
    predict: Prediction,
    length: int,
    block_length: int,
    write: Callable[[Prediction, Cells], Distribution] = any_order,
) -> Distribution:
    """Distribution of texts of at most ``length`` tokens, each cut at its first EOS or PAD."""
    rows: Distribution = {(): 1.0}
    texts: defaultdict[Cells, float] = defaultdict(float)
    for start in range(0, length, block_length):
        size = min(block_length, length - start)
        after: defaultdict[Cells, float] = defaultdict(float)
        for past, mass in rows.items():
            for cells, probability in write(predict, past + (MASK,) * size).items():
                ends = [place for place, token in enumerate(cells) if token in (PAD, EOS)]
                if ends:
                    texts[cells[: ends[0]]] += mass * probability
                else:
                    after[cells] += mass * probability
        rows = dict(after)
    for cells, mass in rows.items():
        texts[cells] += mass
    return dict(texts)


def row_of(text: Cells, block_length: int, *, may_end: bool) -> Cells:
    """The cells of a text: with EOS and PADs, or alone."""
    if not may_end:
        return text
    return (*text, EOS, *(PAD for _ in range(-(len(text) + 1) % block_length)))


def bound(predict: Prediction, row: Cells, block_length: int) -> float:
    """E of -log p(row | order), order by order in each block."""
    total = 0.0
    for start in range(0, len(row), block_length):
        stop = min(start + block_length, len(row))
        orders = list(itertools.permutations(range(start, stop)))
        for order in orders:
            cells = row[:start] + (MASK,) * (stop - start)
            for place in order:
                total -= math.log(predict(cells, place)[row[place]]) / len(orders)
                cells = with_tokens(cells, {place: row[place]})
    return total


def log_prob_of_row(predict: Prediction, row: Cells, block_length: int) -> float:
    """log p of all cells of a row."""
    total = 0.0
    for start in range(0, len(row), block_length):
        stop = min(start + block_length, len(row))
        total += math.log(any_order(predict, row[:start] + (MASK,) * (stop - start))[row[:stop]])
    return total


def total_variation(distribution: Distribution, other: Distribution) -> float:
    every = {*distribution, *other}
    return sum(abs(distribution.get(cells, 0.0) - other.get(cells, 0.0)) for cells in every) / 2


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
    row: Cells,
    block_length: int,
    masked_places: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    may_end: bool = False,
) -> BD3LMBatch:
    """One row for each set of masked cells, all of the same cells."""
    rows, width = len(masked_places), len(row)
    masked = torch.tensor([[place in places for place in range(width)] for places in masked_places])
    blocks = 1 + torch.arange(width) // block_length
    ids = torch.tensor([row]).repeat(rows, 1)
    cell = torch.arange(width).expand(rows, -1)
    past = (blocks < blocks[-1]).nonzero().squeeze(1)
    return {
        "input_ids": ids.masked_fill(masked, MASK),
        "target_ids": ids,
        "cell_blocks": blocks.expand(rows, -1),
        "clean_ids": torch.cat((torch.full((rows, 1), BOS), ids[:, past]), dim=1),
        "clean_blocks": torch.cat((torch.zeros(1, dtype=torch.int64), blocks[past])).expand(rows, -1),
        "prompt_length": torch.ones(rows, dtype=torch.int64),
        "masked": masked,
        "masked_row": masked.nonzero()[:, 0],
        "masked_column": masked.nonzero()[:, 1],
        "masked_level": torch.zeros(int(masked.sum()), dtype=torch.int64),
        "may_end": torch.full_like(masked, may_end),
        "may_pad": (cell % block_length != 0) & may_end,
        "weight": torch.tensor(weights, dtype=torch.float64)[masked.nonzero()[:, 0]],
        "num_eligible": torch.full((rows,), width),
        "num_tokens": torch.full((rows,), width),
        "models_length": torch.full((rows,), may_end),
        "num_draws": torch.tensor(1),
        "draw_of_row": torch.arange(rows),
        "is_exact": torch.tensor(block_length == 1),
    }


def prompt_batch(start: Cells, rows: int, *, may_end: bool = False) -> BD3LMPromptBatch:
    input_ids = torch.tensor([start]).repeat(rows, 1)
    every = torch.ones_like(input_ids, dtype=torch.bool)
    return {
        "prompt_ids": torch.full((rows, 1), BOS),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.bool),
        "input_ids": input_ids,
        "attention_mask": every,
        "masked": input_ids == MASK,
        "may_end": every & may_end,
        "target_start": torch.zeros(rows, dtype=torch.int64),
        "max_length": torch.full((rows,), len(start)),
    }
