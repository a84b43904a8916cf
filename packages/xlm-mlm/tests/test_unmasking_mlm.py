"""The rules that choose cells, against loops over the cells of each row and against reference vectors."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xlm.modules import confidence, take_top
from xlm_mlm.unmasking_mlm import CERTAIN, Counts, MaxUncertainty, MinConfidence, Order, Rule, Schedule

VECTORS = load_file(Path(__file__).parent / "data" / "mlm.safetensors")
MASK = 2


def counts_taken(rule: Rule, num_masks: int, *, seed: int = 0) -> list[int]:
    """Cells chosen in each step of a single row; its masks are the first cells of ten more."""
    masked = torch.arange(num_masks + 10).unsqueeze(0) < num_masks
    scores = torch.rand(masked.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    taken: list[int] = []
    while masked.any():
        chosen = rule.choose(scores, masked, torch.tensor([num_masks]), len(taken) + 1)
        assert (chosen & ~masked).sum() == 0
        taken.append(int(chosen.sum()))
        masked = masked & ~chosen
    return taken


@pytest.mark.parametrize("schedule", ["uniform", "cosine", "sine"])
def test_counts_end_after_exactly_the_steps_and_waste_none(schedule: Schedule) -> None:
    for num_masks in range(1, 40):
        for num_steps in (1, 2, 3, 7, 10, 39, 1000):
            taken = counts_taken(Counts(num_steps, schedule), num_masks)
            assert len(taken) == min(num_steps, num_masks), f"{num_masks} masks in {num_steps} steps: {taken}"
            assert sum(taken) == num_masks
            assert min(taken) >= 1
        assert counts_taken(Counts(None, schedule), num_masks) == [1] * num_masks


def test_uniform_counts_differ_by_at_most_one() -> None:
    assert counts_taken(Counts(4, "uniform"), 10) == [3, 3, 2, 2]
    for num_masks in range(1, 40):
        for num_steps in range(1, 12):
            taken = counts_taken(Counts(num_steps, "uniform"), num_masks)
            assert max(taken) - min(taken) <= 1


def test_curved_counts_follow_their_curve() -> None:
    left = [math.floor(100 * math.cos(math.pi / 2 * step / 8)) for step in range(8)] + [0]
    cosine = [before - after for before, after in itertools.pairwise(left)]
    assert counts_taken(Counts(8, "cosine"), 100) == cosine
    assert cosine == sorted(cosine), "few cells first"
    left = [math.floor(100 * (1 - math.sin(math.pi / 2 * step / 8))) for step in range(8)] + [0]
    sine = [before - after for before, after in itertools.pairwise(left)]
    assert counts_taken(Counts(8, "sine"), 100) == sine
    # Where the curve is flat, a step still takes a cell.
    assert counts_taken(Counts(9, "cosine"), 12) == [1, 1, 1, 1, 1, 1, 2, 2, 2]


def random_rows(seed: int) -> tuple[Tensor, Tensor]:
    """(20, 6) confidences in (0, 1), some of them equal, and masks, at least one per row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(20, 6, generator=generator, dtype=torch.float64).mul(16).round().div(16)
    masked = torch.rand(20, 6, generator=generator) < 0.6
    masked[:, 2] = True
    return scores, masked


def by_score(scores: list[float], masked: list[bool]) -> list[int]:
    cells = [cell for cell, is_masked in enumerate(masked) if is_masked]
    return sorted(cells, key=lambda cell: (-scores[cell], cell))


def chosen_cells(chosen: Tensor) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in chosen]


@pytest.mark.parametrize("seed", range(5))
def test_counts_take_the_best_cells(seed: int) -> None:
    scores, masked = random_rows(seed)
    num_start = masked.sum(1)
    chosen = chosen_cells(Counts(2, "uniform").choose(scores, masked, num_start, 1))
    for row, cells in enumerate(chosen):
        ranked = by_score(scores[row].tolist(), masked[row].tolist())
        assert cells == set(ranked[: math.ceil(len(ranked) / 2)])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.75, 0.99])
def test_min_confidence_takes_what_exceeds_it(threshold: float) -> None:
    scores, masked = random_rows(7)
    chosen = chosen_cells(MinConfidence(threshold).choose(scores, masked, masked.sum(1), 1))
    for row, cells in enumerate(chosen):
        ranked = by_score(scores[row].tolist(), masked[row].tolist())
        assert cells == {cell for cell in ranked if scores[row, cell] > threshold} | {ranked[0]}


@pytest.mark.parametrize("bound", [0.05, 0.5, 1.2, 100.0])
@pytest.mark.parametrize("certain", [1.0, 1.5])
def test_max_uncertainty_sums_over_the_cells_before(bound: float, certain: float) -> None:
    scores, masked = random_rows(8)
    chosen = chosen_cells(MaxUncertainty(bound, certain).choose(scores, masked, masked.sum(1), 1))
    for row, cells in enumerate(chosen):
        expected: set[int] = set()
        total = 0.0
        for cell in by_score(scores[row].tolist(), masked[row].tolist()):
            if expected and not total < bound:
                break
            expected.add(cell)
            total += certain - float(scores[row, cell])
        assert cells == expected


def test_certain_cells_are_filled_together() -> None:
    certain = torch.tensor([[0.0, 0.0, -100.0, 5.0]])
    logits = torch.stack([certain[0], -certain[0], certain[0]])
    for order, certain in CERTAIN.items():
        assert order != "random"
        scores = confidence(1000 * logits, order).unsqueeze(0)
        masked = torch.ones(1, 3, dtype=torch.bool)
        assert MaxUncertainty(1e-9, certain).choose(scores, masked, torch.tensor([3]), 1).all(), order


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_max_uncertainty_of_the_reference(threshold: float) -> None:
    """Its threshold rule by top probability; logits, softmax and all as in the reference, MASK included."""
    before, logits = VECTORS["in.sel.x"], VECTORS["in.logits"].double()
    after = VECTORS[f"xlm.sel.top_prob_thr{threshold}.x.f64"]
    masked = before == MASK
    order: Order = "top_prob"
    scores = confidence(logits.flatten(0, 1), order).view(3, 6)
    chosen = MaxUncertainty(threshold, CERTAIN[order]).choose(scores, masked, masked.sum(1), 1)
    assert torch.equal(torch.where(chosen, logits.argmax(-1), before), after)


def test_best_cells_of_the_reference() -> None:
    mask = VECTORS["in.select.mask"].bool()
    chosen = take_top(VECTORS["in.select.score"], VECTORS["in.select.num_unmask"], mask)
    assert torch.equal(chosen.long(), VECTORS["xlm.select_greedy"])
