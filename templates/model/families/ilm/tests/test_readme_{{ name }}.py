"""The example of the README, run as it stands."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch


def test_readme_example_learns_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = cast("list[str]", re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
    names: dict[str, object] = {}
    state = torch.get_rng_state()
    exec(compile(example, "README.md", "exec"), names)
    torch.set_rng_state(state)
    loaded, trained = cast("Any", names["again"]), cast("Any", names["filled"])
    assert torch.equal(loaded.ids, trained.ids), "a loaded network writes something else"

    words, texts = cast("list[str]", names["WORDS"]), cast("list[str]", names["texts"])
    written = [text for text in texts if text in words]
    assert len(written) >= 0.6 * len(texts), f"few of these are words: {texts}"
    assert set(written) == set(words)
    infilled = cast("str", names["infilled"])
    assert (infilled[0], infilled[-1]) == ("m", "g")
    printed = capsys.readouterr().out
    assert printed.startswith(" ".join(texts[:10]))
