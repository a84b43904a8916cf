"""Metrics of generations: exact match, and statistics of texts."""

import math
import sys
import types
from collections.abc import Sequence

import pytest

from xlm.tasks.metrics import ExactMatch, Generation
from xlm.tasks.text import TextMetrics, mauve_score


def generations(*texts: Sequence[int]) -> list[Generation]:
    return [
        {
            "prompt_ids": [],
            "ids": list(ids),
            "reference_ids": [],
            "prompt": "",
            "text": " ".join(map(str, ids)),
            "reference": "",
        }
        for ids in texts
    ]


def measured(*texts: Sequence[int]) -> dict[str, float]:
    metric = TextMetrics()
    metric.update(generations(*texts))
    return metric.compute()


def test_metrics_of_texts_counted_by_hand() -> None:
    # 1 2 1 2 1 2: bigrams 12 21 12 21 12; trigrams 121 212 121 212; 4-grams 1212 2121 1212
    found = measured([1, 2, 1, 2, 1, 2], [7], [])
    assert found == pytest.approx(
        {
            "tokens": 7 / 3,
            "empty": 1 / 3,
            "token_entropy": (math.log(2) + 0) / 2,
            "distinct_1": 3 / 7,
            "distinct_2": 2 / 5,
            "distinct_3": 2 / 4,
            "repeated_4": 1 / 3,
        }
    )


def test_the_entropy_is_that_of_the_tokens_frequencies() -> None:
    shares = [0.5, 0.25, 0.25]
    expected = -sum(share * math.log(share) for share in shares)
    assert measured([5, 5, 8, 9])["token_entropy"] == pytest.approx(expected)
    assert measured(range(100))["token_entropy"] == pytest.approx(math.log(100))


def test_nothing_gives_zeros() -> None:
    assert set(measured().values()) == {0.0}
    assert measured([])["empty"] == 1.0


def test_states_of_two_processes_add_up() -> None:
    texts = [[1, 2, 3, 1, 2, 3, 1], [4] * 9, [], [5, 6], [1]]
    whole, first, second = TextMetrics(), TextMetrics(), TextMetrics()
    whole.update(generations(*texts))
    first.update(generations(*texts[:2]))
    second.update(generations(*texts[2:4]))
    second.update(generations(*texts[4:]))
    first.sums = {name: value + second.sums[name] for name, value in first.sums.items()}
    assert first.compute() == pytest.approx(whole.compute())
    whole.reset()
    assert set(whole.compute().values()) == {0.0}


def test_mauve_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ModuleNotFoundError, match=r'uv pip install "xlm-tasks\[mauve\]"'):
        mauve_score(["a"], ["b"])
    with pytest.raises(ValueError, match="got 0 and 1"):
        mauve_score([], ["b"])


def test_mauve_hands_real_and_generated_texts_to_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def compute_mauve(**arguments: object) -> types.SimpleNamespace:
        asked.update(arguments)
        return types.SimpleNamespace(mauve=0.25)

    monkeypatch.setitem(sys.modules, "mauve", types.SimpleNamespace(compute_mauve=compute_mauve))
    assert mauve_score(["generated"], ["real"], seed=3) == 0.25
    assert (asked["p_text"], asked["q_text"], asked["seed"]) == (["real"], ["generated"], 3)


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
