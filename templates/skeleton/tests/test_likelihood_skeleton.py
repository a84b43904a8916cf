"""The bound against its definition: the mean over all orders of filling, enumerated."""

import math
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor, nn

from xlm_skeleton import SkeletonBatch, SkeletonCollator, SkeletonExample, SkeletonLoss

PAD, MASK, VOCAB = 0, 1, 5
TARGET = (2, 4, 3)


class Table(nn.Module):
    """Arbitrary but fixed log-probabilities that depend on everything that is visible."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, positions: Tensor) -> Tensor:
        columns = input_ids.shape[1]
        rows = [
            torch.sin((hash_of(input_ids[cell // columns]) + cell % columns) * torch.arange(1.0, VOCAB + 1))
            for cell in positions.tolist()
        ]
        return torch.stack(rows).double().log_softmax(1)


def hash_of(row: Tensor) -> int:
    return sum(3**column * token for column, token in enumerate(row.tolist()))


def cost(masked: tuple[int, ...], column: int) -> float:
    """CE of a cell of TARGET while ``masked`` are masked."""
    visible = torch.tensor([[MASK if place in masked else token for place, token in enumerate(TARGET)]])
    logits = Table()(visible, visible > 0, positions=torch.tensor([column]))
    return -float(logits[0, TARGET[column]])


def batch_with(masked: tuple[int, ...]) -> SkeletonBatch:
    target = torch.tensor([TARGET])
    at = torch.tensor([[place in masked for place in range(len(TARGET))]])
    return {
        "input_ids": target.masked_fill(at, MASK),
        "attention_mask": torch.ones_like(at),
        "target_ids": target,
        "masked_row": at.nonzero()[:, 0],
        "masked_column": at.nonzero()[:, 1],
        "num_missing": torch.tensor([len(TARGET)]),
    }


def test_the_bound_is_the_mean_over_all_orders() -> None:
    length = len(TARGET)
    orders = list(permutations(range(length)))
    exact = sum(cost(order[step:], order[step]) for order in orders for step in range(length)) / len(orders)
    loss = SkeletonLoss()
    estimate = sum(
        float(loss.likelihood(Table(), batch_with(masked)).nll) / math.comb(length, number) / length
        for number in range(1, length + 1)
        for masked in combinations(range(length), number)
    )
    assert estimate == pytest.approx(exact, rel=1e-9)


def test_every_number_and_set_of_masks_is_as_likely_as_the_bound_says() -> None:
    collate = SkeletonCollator(pad_id=PAD, mask_id=MASK)
    rows: list[SkeletonExample] = [{"seed": seed, "target_ids": torch.tensor(TARGET)} for seed in range(9000)]
    code = ((collate(rows)["input_ids"] == MASK) * torch.tensor([1, 2, 4])).sum(1)
    counts = torch.bincount(code, minlength=8).tolist()
    expected = [0] + [3000 / math.comb(3, bin(subset).count("1")) for subset in range(1, 8)]
    assert counts[0] == 0
    chi_square = sum((found - mean) ** 2 / mean for found, mean in zip(counts[1:], expected[1:], strict=True))
    assert chi_square < 22.5, "99.9 % quantile with 6 degrees of freedom"
