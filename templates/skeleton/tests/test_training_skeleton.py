"""The example of the README, run as it stands."""

import re
from pathlib import Path

import torch

from xlm_skeleton import SkeletonLossOutput, SkeletonMetrics, SkeletonPrediction


def test_readme_example_learns_to_count() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    prediction = names["prediction"]
    assert isinstance(prediction, SkeletonPrediction)
    expected = 2 + (torch.arange(8).unsqueeze(1) + torch.arange(3)) % 8
    right = (prediction.ids == expected).all(1)
    assert right.sum() >= 7, f"{prediction.ids} instead of {expected}"
    assert prediction.nfe.tolist() == [3] * 8


def test_metrics_add_up() -> None:
    metrics = SkeletonMetrics()
    assert metrics.compute() == {"masked_accuracy": 0.0}
    for correct, masked in ((1, 4), (2, 2)):
        metrics.update(
            SkeletonLossOutput(
                loss_sum=torch.tensor(1.0),
                loss_count=torch.tensor(masked),
                terms={},
                num_correct=torch.tensor(correct),
            )
        )
    assert metrics.compute() == {"masked_accuracy": 0.5}
