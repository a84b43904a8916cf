"""The example of the README, run as it stands."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch


def test_readme_example_learns_to_reverse(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    state = torch.get_rng_state()
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    torch.set_rng_state(state)
    loaded, trained = cast("Any", names["again"]), cast("Any", names["answers"])
    assert torch.equal(loaded.ids, trained.ids), "a loaded network writes something else"
    assert isinstance(names["right"], int)
    assert names["right"] >= 61, capsys.readouterr().out
