import pytest

from xlm.tasks.metrics import ExactMatch, Generation


def make_generation(ids: list[int], reference_ids: list[int]) -> Generation:
    return {
        "prompt_ids": [],
        "ids": ids,
        "reference_ids": reference_ids,
        "prompt": "",
        "text": "",
        "reference": "",
    }


# ids, reference, equal positions, length of the longer one
CASES: list[tuple[list[int], list[int], int, int]] = [
    ([7, 8, 9], [7, 8, 9], 3, 3),
    ([7, 8], [7, 8, 9], 2, 3),
    ([7, 8, 9, 9], [7, 8, 9], 3, 4),
    ([8, 9, 7], [7, 8, 9], 0, 3),
    ([], [7, 8, 9], 0, 3),
    ([0, 2], [], 0, 2),
    ([], [], 0, 0),
]


@pytest.mark.parametrize(("ids", "reference_ids", "matches", "length"), CASES)
def test_exact_match_of_one_generation(
    ids: list[int], reference_ids: list[int], matches: int, length: int
) -> None:
    metric = ExactMatch()
    metric.update([make_generation(ids, reference_ids)])
    assert metric.compute() == {
        "exact_match": float(ids == reference_ids),
        "token_accuracy": matches / length if length else 0.0,
    }


def test_exact_match_sums_over_rows_and_tokens() -> None:
    metric = ExactMatch()
    generations = [make_generation(ids, reference_ids) for ids, reference_ids, _, _ in CASES]
    metric.update(generations)
    assert metric.compute() == {"exact_match": 2 / 7, "token_accuracy": 8 / 18}

    in_parts = ExactMatch()
    in_parts.update(generations[:2])
    in_parts.update([])
    in_parts.update(generations[2:])
    assert in_parts.sums == metric.sums


def test_exact_match_states_of_two_processes_add_up() -> None:
    generations = [make_generation(ids, reference_ids) for ids, reference_ids, _, _ in CASES]
    both, first, second = ExactMatch(), ExactMatch(), ExactMatch()
    both.update(generations)
    first.update(generations[:5])
    second.update(generations[5:])
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    assert first.compute() == both.compute()


def test_exact_match_starts_and_resets_to_zero() -> None:
    metric = ExactMatch()
    nothing = {"exact_match": 0.0, "token_accuracy": 0.0}
    assert metric.compute() == nothing
    metric.update([make_generation([7], [7])])
    assert metric.compute() == {"exact_match": 1.0, "token_accuracy": 1.0}
    metric.reset()
    assert metric.compute() == nothing
    assert all(value == 0 for value in metric.sums.values())
