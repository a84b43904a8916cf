"""The example of the README, run as it stands."""

import re
from pathlib import Path

from torch import Tensor

from xlm_mdlm import MDLMExample, MDLMPrediction


def test_readme_example_learns_to_count() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    prediction, questions, nll = names["prediction"], names["questions"], names["nll"]
    assert isinstance(prediction, MDLMPrediction)
    again = names["again"]
    assert isinstance(again, MDLMPrediction)
    assert again.ids.equal(prediction.ids), "a loaded network writes something else"
    assert isinstance(questions, list)
    right = [target_of(question) == ids for question, ids in zip(questions, texts(prediction), strict=True)]
    assert len(right) >= 50
    assert sum(right) >= 0.95 * len(right), f"{sum(right)} of {len(right)} answers are right"
    assert isinstance(nll, Tensor)
    # The answer follows from the question, so its entropy is 0; the untrained network is at log 10 per cell.
    assert 0 < float(nll.mean()) < 1.0


def target_of(question: MDLMExample) -> list[int]:
    return question["target_ids"].tolist() if "target_ids" in question else []


def texts(prediction: MDLMPrediction) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(prediction.ids, prediction.lengths, strict=True)]
