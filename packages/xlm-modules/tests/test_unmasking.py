"""Choice of the cells to unmask against loops in Python."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from xlm.modules import confidence, take_top, unmask_counts
from xlm.modules.unmasking import Confidence


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
    logits = 3 * torch.randn(50, 7)
    logits[10:20, 3] = -torch.inf
    logits[20:30, 1:] = -torch.inf
    logits[30:40] += 1000
    logits[40:] = 0.0
    values = confidence(logits, kind)
    assert values.dtype == torch.float64
    expected = torch.tensor([confidence_by_hand(row, kind) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)


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
