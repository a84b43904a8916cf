"""Choice of the cells to unmask against loops in Python."""

import itertools
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from xlm.modules import confidence, take_top, unmask_counts
from xlm.modules.samplers.quotas import Budget, Count, Schedule, Stable, Threshold
from xlm.modules.samplers.ranks import Confidence, Confident, View


def softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def confidence_by_hand(logits: list[float], kind: str) -> float:
    probabilities = sorted(softmax(logits), reverse=True)
    if kind == "top_prob":
        return probabilities[0]
    if kind == "margin":
        return probabilities[0] - probabilities[1]
    return math.fsum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize("kind", ["top_prob", "margin", "entropy"])
def test_confidence_equals_its_definition(kind: Confidence):
    logits = 3 * torch.randn(50, 7, dtype=torch.float64)
    logits[10:20, 3] = -torch.inf
    logits[20:30, 1:] = -torch.inf
    logits[30:40] += 1000
    logits[40:] = 0.0
    values = confidence(logits, kind)
    assert values.dtype == torch.float64
    expected = torch.tensor([confidence_by_hand(row, kind) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
    rounded = confidence(logits.float(), kind)
    assert rounded.dtype == torch.float64
    torch.testing.assert_close(rounded, expected, rtol=1e-4, atol=1e-5)


def test_confidence_tells_sure_cells_apart_in_any_dtype():
    """In float32 both probabilities would be 1."""
    logits = torch.tensor([[20.0, 0.0], [21.0, 0.0]], dtype=torch.bfloat16)
    for kind in ("top_prob", "margin", "entropy"):
        first, second = confidence(logits, kind).tolist()
        assert first < second


def test_confidence_of_no_rows_is_empty():
    assert confidence(torch.zeros(0, 5), "margin").shape == (0,)


def test_other_kinds_of_confidence_are_refused():
    """By us, or before by the type checker if the tests run with one."""
    with pytest.raises((ValueError, TypeError), match="'top_prob', 'margin'"):
        confidence(torch.zeros(1, 2), "best")  # pyright: ignore[reportArgumentType]  # what is tested


def taken_by_hand(scores: Tensor, counts: Tensor, eligible: Tensor) -> Tensor:
    taken = torch.zeros_like(eligible)
    for row, count in enumerate(counts.tolist()):
        cells = [cell for cell in range(scores.shape[1]) if eligible[row, cell]]
        cells.sort(key=lambda cell: (-float(scores[row, cell]), cell))
        for cell in cells[:count]:
            taken[row, cell] = True
    return taken


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_take_top_equals_sorting_in_python(levels: int):
    """Few levels make many ties."""
    scores = torch.randint(0, levels, (300, 9)).double() - levels / 2
    eligible = torch.rand(300, 9) < torch.rand(300, 1)
    counts = torch.randint(0, 11, (300,))
    assert torch.equal(take_top(scores, counts, eligible), taken_by_hand(scores, counts, eligible))


def test_take_top_equals_enumeration_of_all_masks():
    scores = torch.tensor([0.3, -1.0, 0.3, 2.0])
    for eligible_row, count in product(product([False, True], repeat=4), range(6)):
        eligible, counts = torch.tensor([eligible_row]), torch.tensor([count])
        taken = take_top(scores.unsqueeze(0), counts, eligible)
        assert int(taken.sum()) == min(count, sum(eligible_row))
        assert torch.equal(taken, taken_by_hand(scores.unsqueeze(0), counts, eligible))


def test_take_top_of_infinite_scores():
    """A cell that is eligible counts as such even at a score of -inf."""
    scores = torch.tensor([[-torch.inf, -torch.inf, torch.inf, -torch.inf]])
    eligible = torch.tensor([[False, True, False, True]])
    assert take_top(scores, torch.tensor([1]), eligible).tolist() == [[False, True, False, False]]
    assert take_top(scores, torch.tensor([2]), eligible).tolist() == [[False, True, False, True]]


def test_scores_of_cells_that_are_not_eligible_do_not_matter():
    scores, eligible, counts = torch.rand(20, 6), torch.rand(20, 6) < 0.5, torch.full((20,), 2)
    others = torch.where(eligible, scores, 10 * torch.randn(20, 6))
    others[:, 0] = torch.where(eligible[:, 0], others[:, 0], torch.nan)
    assert torch.equal(take_top(others, counts, eligible), take_top(scores, counts, eligible))


def test_take_top_takes_nothing_for_counts_of_zero_and_below():
    taken = take_top(torch.rand(2, 4), torch.tensor([0, -3]), torch.ones(2, 4, dtype=torch.bool))
    assert not bool(taken.any())


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (3, 0)])
def test_take_top_of_empty_batches(batch: int, length: int):
    counts, eligible = torch.ones(batch, dtype=torch.int64), torch.ones(batch, length, dtype=torch.bool)
    assert take_top(torch.rand(batch, length), counts, eligible).shape == (batch, length)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
def test_unmask_counts_spread_the_cells_over_the_steps(steps: int):
    start = torch.arange(30)
    num_masked, parts = start, []
    for steps_left in range(steps, 0, -1):
        parts.append(unmask_counts(num_masked, steps_left))
        num_masked = num_masked - parts[-1]
    assert bool((num_masked == 0).all())
    # The parts of n cells: n mod steps times ceil(n / steps), then floor(n / steps).
    for n, row in zip(start.tolist(), torch.stack(parts, dim=1).tolist(), strict=True):
        quotient, remainder = divmod(n, steps)
        assert row == [quotient + 1] * remainder + [quotient] * (steps - remainder)


def test_unmask_counts_need_a_step():
    with pytest.raises(ValueError, match="steps_left must be at least 1, got 0"):
        unmask_counts(torch.tensor([3]), 0)


def test_margin_of_the_only_token_is_its_probability() -> None:
    """The second token that there is not has probability 0."""
    assert confidence(torch.tensor([[0.3], [-7.0]]), "margin").tolist() == [1.0, 1.0]
    only_one_allowed = torch.tensor([[0.3, -torch.inf, -torch.inf]])
    assert confidence(only_one_allowed, "margin").tolist() == [1.0]


# Quotas


def view_of(masked: Tensor, turn: int = 1, start: Tensor | None = None) -> View:
    return View(torch.arange(len(masked)), turn, masked, masked if start is None else start)


def counts_taken(rule: Count, num_masks: int, *, seed: int = 0) -> list[int]:
    """Cells chosen in each step of a single row; its masks are the first cells of ten more."""
    masked = torch.arange(num_masks + 10).unsqueeze(0) < num_masks
    scores = torch.rand(masked.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = masked
    taken: list[int] = []
    while masked.any():
        chosen = rule.choose(scores, view_of(masked, len(taken) + 1, start))
        assert (chosen & ~masked).sum() == 0
        taken.append(int(chosen.sum()))
        masked = masked & ~chosen
    return taken


@pytest.mark.parametrize("schedule", ["uniform", "cosine", "sine"])
def test_counts_end_after_exactly_the_steps_and_waste_none(schedule: Schedule) -> None:
    for num_masks in range(1, 40):
        for num_steps in (1, 2, 3, 7, 10, 39, 1000):
            taken = counts_taken(Count(num_steps, schedule), num_masks)
            assert len(taken) == min(num_steps, num_masks), f"{num_masks} masks in {num_steps} steps: {taken}"
            assert sum(taken) == num_masks
            assert min(taken) >= 1
        assert counts_taken(Count(None, schedule), num_masks) == [1] * num_masks


def test_uniform_counts_differ_by_at_most_one() -> None:
    assert counts_taken(Count(4, "uniform"), 10) == [3, 3, 2, 2]
    for num_masks in range(1, 40):
        for num_steps in range(1, 12):
            taken = counts_taken(Count(num_steps, "uniform"), num_masks)
            assert max(taken) - min(taken) <= 1


def test_curved_counts_follow_their_curve() -> None:
    left = [math.floor(100 * math.cos(math.pi / 2 * step / 8)) for step in range(8)] + [0]
    cosine = [before - after for before, after in itertools.pairwise(left)]
    assert counts_taken(Count(8, "cosine"), 100) == cosine
    assert cosine == sorted(cosine), "few cells first"
    left = [math.floor(100 * (1 - math.sin(math.pi / 2 * step / 8))) for step in range(8)] + [0]
    sine = [before - after for before, after in itertools.pairwise(left)]
    assert counts_taken(Count(8, "sine"), 100) == sine
    # Where the curve is flat, a step still takes a cell.
    assert counts_taken(Count(9, "cosine"), 12) == [1, 1, 1, 1, 1, 1, 2, 2, 2]


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


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.75, 0.99])
def test_a_threshold_takes_what_exceeds_it(threshold: float) -> None:
    scores, masked = random_rows(7)
    chosen = chosen_cells(Threshold(threshold).choose(scores, view_of(masked)))
    for row, cells in enumerate(chosen):
        ranked = by_score(scores[row].tolist(), masked[row].tolist())
        assert cells == {cell for cell in ranked if scores[row, cell] > threshold} | {ranked[0]}


@pytest.mark.parametrize("bound", [0.05, 0.5, 1.2, 100.0])
@pytest.mark.parametrize("certain", [1.0, 1.5])
def test_a_budget_sums_over_the_cells_before(bound: float, certain: float) -> None:
    scores, masked = random_rows(8)
    chosen = chosen_cells(Budget(bound, certain).choose(scores, view_of(masked)))
    for row, cells in enumerate(chosen):
        expected: set[int] = set()
        total = 0.0
        for cell in by_score(scores[row].tolist(), masked[row].tolist()):
            if expected and total > bound:
                break
            expected.add(cell)
            total += certain - float(scores[row, cell])
        assert cells == expected


def test_certain_cells_are_filled_together() -> None:
    certain = torch.tensor([0.0, 0.0, -100.0, 5.0])
    logits = 1000 * torch.stack([certain, -certain, certain])
    kinds: tuple[Confidence, ...] = ("top_prob", "margin", "entropy")
    for kind in kinds:
        rank = Confident(kind)
        view = replace(view_of(torch.ones(1, 3, dtype=torch.bool)), logits=logits)
        for budget in (Budget(1e-9, rank.certain), Budget(1e-9)):
            assert budget.choose(rank.scores(view), view).all(), kind


def test_klass_compares_predictions_as_by_its_definition() -> None:
    """Against softmaxes in Python, with a token that is impossible."""
    chooser, generator = Stable(tau=0.4, eps=0.3, evaluations=2, fallback=1).begin(), torch.manual_seed(4)
    masked, tables, num_ready = torch.ones(6, 4, dtype=torch.bool), list[Tensor](), 0
    base = 2 * torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    base[..., 4] = -torch.inf
    for turn in range(1, 5):
        tables.append(base + 0.6 * torch.randn(base.shape, generator=generator, dtype=torch.float64))
        view = View(torch.arange(6), turn, masked, masked, tables[-1][masked])
        chosen = chosen_cells(chooser.choose(Confident("top_prob").scores(view), view))
        for row, cells in enumerate(chosen):
            left = masked[row].nonzero()[:, 0].tolist()
            seen = {cell: [softmax(table[row, cell].tolist()) for table in tables[-3:]] for cell in left}
            ready = {
                cell
                for cell, (*before, now) in seen.items()
                if max(now) > 0.4 and len(before) == 2 and max(changes([*before, now])) < 0.3
            }
            num_ready += len(ready)
            tops = {cell: max(now) for cell, (*_, now) in seen.items()}
            assert cells == (ready or {cell for cell, top in tops.items() if top == max(tops.values())})
            masked[row, list(cells)] = False
    assert num_ready > 2


def changes(predictions: list[list[float]]) -> list[float]:
    """KL(p now || p before) of each prediction but the first."""
    return [
        math.fsum(p * math.log(p / q) for p, q in zip(now, before, strict=True) if p > 0)
        for before, now in itertools.pairwise(predictions)
    ]
