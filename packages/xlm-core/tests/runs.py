"""Runs as training leaves them, without the time that training takes."""

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor

from .conftest import Compose

RESUMABLE: dict[str, object] = {
    "pytorch-lightning_version": "2.6.0",
    "loops": {"fit_loop": {}},
    "DataModule": {"batches_done": 0},
    "state_dict": {"model.bias": torch.ones(3)},
    "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
    "lr_schedulers": [{"last_epoch": 1}],
}
"""Keys required to resume, beside the step."""


def make_run(
    compose_toy: Compose, output_dir: Path, name: str = "toy", *, averaged: bool = False, size: int = 6
) -> Path:
    """A run's folder: its config and a checkpoint with random weights, ``size`` of them."""
    folder = output_dir / name
    (folder / "checkpoints").mkdir(parents=True)
    overrides = ("job_type=train", f"job_name={name}", f"model.vocab_size={size}")
    config = OmegaConf.to_container(compose_toy(*overrides), resolve=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    generator = torch.Generator().manual_seed(sum(name.encode()))  # each name has its own weights
    checkpoint: dict[str, object] = {
        "state_dict": {"model.bias": torch.randn(size, generator=generator)},
        "global_step": 1,
    }
    if averaged:
        checkpoint |= {
            "averaging_state": {},
            "current_model_state": {"model.bias": torch.randn(size, generator=generator)},
        }
    torch.save(checkpoint, folder / "checkpoints" / "best-00000001.ckpt")
    return folder


def repeatable(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that the same job gives again: all but its seconds."""
    return {name: value for name, value in metrics.items() if not name.endswith("/seconds_per_sequence")}


def weights(run: Path, key: str = "state_dict") -> Tensor:
    """The toy network's weights in the run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return torch.load(newest, weights_only=True)[key]["model.bias"]


def curve(run: Path) -> dict[int, str]:
    """The logged losses by step, of all parts of a run; a step that was done twice must agree."""
    losses: dict[int, str] = {}
    for file in run.glob("csv/version_*/metrics.csv"):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if loss := row.get("train/loss"):
                    assert losses.setdefault(int(row["step"]), loss) == loss
    return losses


def validations(run: Path) -> dict[int, str]:
    metrics: dict[int, str] = {}
    for file in run.glob("csv/version_*/metrics.csv"):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if value := row.get("val/lm/nll_per_token"):
                    assert metrics.setdefault(int(row["step"]), value) == value
    return metrics
