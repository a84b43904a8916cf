"""The example of the README, run as it stands."""

import re
from pathlib import Path

from xlm_mlm import MLMExample, MLMPrediction


def test_readme_example_learns_to_count() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    prediction, questions = names["prediction"], names["questions"]
    assert isinstance(prediction, MLMPrediction)
    again = names["again"]
    assert isinstance(again, MLMPrediction)
    assert again.ids.equal(prediction.ids), "a loaded network writes something else"
    assert isinstance(questions, list)
    examples: list[MLMExample] = questions
    answers = [ids[:length] for ids, length in zip(prediction.ids, prediction.lengths.tolist(), strict=True)]
    right = [
        answer.tolist() == example["target_ids"].tolist()
        for answer, example in zip(answers, examples, strict=True)
        if "target_ids" in example
    ]
    assert len(right) >= 50
    assert sum(right) >= 0.9 * len(right), f"{sum(right)} of {len(right)} answers are right"
    assert max(prediction.nfe.tolist()) == 3
