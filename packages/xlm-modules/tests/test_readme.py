import re
from pathlib import Path

import torch


def test_the_example_of_the_readme_runs():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(compile(example, "README.md", "exec"), names)
    masked, real = names["masked"], names["real"]
    assert 0 < int(masked.sum()) < int(real.sum())
    assert torch.equal(names["noisy"][~masked], names["clean"][~masked])
