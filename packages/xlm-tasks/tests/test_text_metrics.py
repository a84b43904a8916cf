import math
import sys
import types
from collections.abc import Sequence

import pytest

from xlm.tasks.metrics import Generation
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
