"""The exact distributions of unmasking over tiny vocabularies, by enumeration in plain Python and numpy.

Shares no code with the package: the cells of a row are a tuple of ids, MASK among them.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from xlm_mlm import MLMBatch, MLMPromptBatch

PAD, MASK, EOS, BOS, FIRST = range(5)

Cells = tuple[int, ...]
Prediction = Callable[[Cells, int], dict[int, float]]
"""Probabilities of the tokens at a masked cell, given all cells."""


class TableNetwork(nn.Module):
    """Rows [BOS] and ``length`` cells: any network at all, with logits drawn at random for each state."""

    def __init__(self, *, length: int, vocab_size: int, seed: int, scale: float = 1.5) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        shape = (vocab_size**length, length + 1, vocab_size)
        self.table = nn.Parameter(
            scale * torch.randn(shape, generator=generator, dtype=torch.float64), requires_grad=False
        )
        self.asked: list[int] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        positions: Tensor,
        position_ids: None = None,
    ) -> Tensor:
        assert attention_mask is None or attention_mask.all()
        self.asked.append(len(positions))
        digits = self.vocab_size ** torch.arange(input_ids.shape[1] - 1)
        logits = self.table[(input_ids[:, 1:] * digits).sum(1)]
        return logits.flatten(0, 1)[positions]

    def prediction(self, ids_at: Callable[[int], Sequence[int]]) -> Prediction:
        """What the network predicts when the ids of ``ids_at(cell)`` are the possible ones."""
        table = self.table.detach().numpy()

        @cache
        def predict(cells: Cells, cell: int) -> dict[int, float]:
            code = sum(token * self.vocab_size**place for place, token in enumerate(cells))
            weights = {token: math.exp(table[code, cell + 1, token]) for token in ids_at(cell)}
            total = sum(weights.values())
            return {token: weight / total for token, weight in weights.items()}

        return predict


def with_tokens(cells: Cells, tokens: dict[int, int]) -> Cells:
    return tuple(tokens.get(place, token) for place, token in enumerate(cells))


def masks(cells: Cells) -> list[int]:
    return [place for place, token in enumerate(cells) if token == MASK]


def filled_distribution(predict: Prediction, start: Cells, counts: Sequence[int]) -> dict[Cells, float]:
    """Distribution of the cells when step s fills ``counts[s]`` of the masks, each such set being equally
    likely."""
    distribution = {start: 1.0}
    for count in counts:
        after: defaultdict[Cells, float] = defaultdict(float)
        for cells, mass in distribution.items():
            subsets = list(itertools.combinations(masks(cells), count))
            for subset in subsets:
                options = [predict(cells, place).items() for place in subset]
                for drawn in itertools.product(*options):
                    tokens = {place: token for place, (token, _) in zip(subset, drawn, strict=True)}
                    probability = math.prod(value for _, value in drawn)
                    after[with_tokens(cells, tokens)] += mass / len(subsets) * probability
        distribution = dict(after)
    return distribution


def log_probabilities_by_order(predict: Prediction, start: Cells, target: Cells) -> Iterator[float]:
    """log p(target | order) for every order of filling the masks of ``start`` one by one."""
    for order in itertools.permutations(masks(start)):
        cells, total = start, 0.0
        for place in order:
            total += math.log(predict(cells, place)[target[place]])
            cells = with_tokens(cells, {place: target[place]})
        yield total


def any_order_bound(predict: Prediction, start: Cells, target: Cells) -> float:
    """E over orders of -log p(target | order)."""
    values = list(log_probabilities_by_order(predict, start, target))
    return -sum(values) / len(values)


def any_order_nll(predict: Prediction, start: Cells, target: Cells) -> float:
    """-log E over orders of p(target | order)."""
    values = list(log_probabilities_by_order(predict, start, target))
    return -math.log(sum(map(math.exp, values)) / len(values))


def masked_batch(
    target: Cells, subsets: Sequence[Sequence[int]], weights: Sequence[float], may_end: Sequence[bool]
) -> MLMBatch:
    """One row per set of masked cells, all of the same target, written out cell by cell."""
    rows, length = len(subsets), len(target)
    pairs = [(row, place + 1) for row, subset in enumerate(subsets) for place in subset]
    batch: MLMBatch = {
        "input_ids": torch.tensor(
            [[BOS, *with_tokens(target, dict.fromkeys(subset, MASK))] for subset in subsets]
        ),
        "attention_mask": torch.ones(rows, length + 1, dtype=torch.bool),
        "target_ids": torch.tensor([[BOS, *target]]).repeat(rows, 1),
        "masked": torch.tensor(
            [[False, *(place in subset for place in range(length))] for subset in subsets]
        ),
        "masked_row": torch.tensor([row for row, _ in pairs], dtype=torch.int64),
        "masked_column": torch.tensor([column for _, column in pairs], dtype=torch.int64),
        "may_end": torch.tensor([[False, *may_end]]).repeat(rows, 1),
        "prompt_length": torch.ones(rows, dtype=torch.int64),
        "num_eligible": torch.full((rows,), length),
        "likelihood_weight": torch.tensor(weights, dtype=torch.float64),
        "num_tokens": torch.full((rows,), length),
        "models_length": torch.full((rows,), any(may_end)),
        "num_draws": torch.tensor(1),
    }
    return batch


def prompt_batch(start: Cells, rows: int, *, may_end: bool = False) -> MLMPromptBatch:
    input_ids = torch.tensor([[BOS, *start]]).repeat(rows, 1)
    cells = torch.arange(len(start) + 1).expand(rows, -1) > 0
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(cells),
        "masked": input_ids == MASK,
        "may_end": cells & may_end,
        "target_start": torch.ones(rows, dtype=torch.int64),
    }


def all_subsets(length: int) -> list[tuple[int, ...]]:
    return [subset for size in range(length + 1) for subset in itertools.combinations(range(length), size)]


def total_variation(distribution: dict[Cells, float], other: dict[Cells, float]) -> float:
    return (
        sum(abs(distribution.get(cells, 0.0) - other.get(cells, 0.0)) for cells in {*distribution, *other})
        / 2
    )


def shares(texts: Sequence[Cells]) -> dict[Cells, float]:
    return {cells: number / len(texts) for cells, number in Counter(texts).items()}


def assert_drawn_from(texts: Sequence[Cells], distribution: dict[Cells, float]) -> None:
    """Pearson's chi-square test at the level of 0.1 %, with the quantile of Wilson and Hilferty."""
    found, number = Counter(texts), len(texts)
    assert set(found) <= set(distribution), f"impossible texts: {set(found) - set(distribution)}"
    statistic = sum(
        (found[cells] - number * mass) ** 2 / (number * mass) for cells, mass in distribution.items()
    )
    freedom = len(distribution) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"
