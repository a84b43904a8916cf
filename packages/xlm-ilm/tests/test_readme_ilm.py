"""The example of the README, run as it stands."""

import re
from pathlib import Path

import torch
from torch import Tensor


def test_readme_example_learns_to_count() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    state = torch.get_rng_state()
    names: dict[str, object] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    torch.set_rng_state(state)

    ids, lengths, questions = names["ids"], names["lengths"], names["questions"]
    assert isinstance(ids, Tensor)
    assert isinstance(lengths, Tensor)
    assert isinstance(questions, list)
    right = [
        torch.equal(row[:length], question["target_ids"])
        for row, length, question in zip(ids, lengths, questions, strict=True)
    ]
    assert len(right) >= 20
    assert sum(right) >= 0.95 * len(right), f"{sum(right)} of {len(right)} answers are right"
