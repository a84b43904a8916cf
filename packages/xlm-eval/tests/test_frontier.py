"""A grid over a sampler of the toy family that writes each token with a probability."""

import json
import shutil
from pathlib import Path

import pytest

from xlm.core.config.errors import XLMError
from xlm.eval.sweep import point_name, points, with_values

from .conftest import Run

FAMILY = '''
from dataclasses import replace
import torch
from torch import nn
from toy_family import PAD, ToyBatch, ToyPrediction, ToyPredictor, ToyModel
from xlm.modules import uniform

MADE = []


class CountedModel(ToyModel):
    def __init__(self, *, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        MADE.append(1)


class NoisyPredictor(ToyPredictor):
    """Writes another token with the probability ``error``; the draws belong to the rows."""

    def __init__(self, *, error: float = 0.0, times: int = 1) -> None:
        if not 0 <= error <= 1:
            raise ValueError("error must be a probability")
        self.error, self.times = error, times

    def __call__(self, model: nn.Module, batch: ToyBatch, seeds: torch.Tensor, *, trace: bool = False):
        right = super().__call__(model, batch, seeds, trace=trace)
        wrong = uniform(seeds, 1, step=1, stream=0)[:, 0] < self.error
        ids = torch.where(wrong[:, None] & (right.ids != PAD), 5, right.ids)
        return replace(right, ids=ids, nfe=right.nfe * self.times)
'''
PREDICTOR = (
    "model._target_=noisy_family.CountedModel",
    "predictor._target_=noisy_family.NoisyPredictor",
    "+predictor.error=0.0",
    "+predictor.times=1",
)
SWEEP = "+sweep={predictor.error: [0.0, 0.4, 0.8], predictor.times: [1, 2]}"


@pytest.fixture
def frontier(run_toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "noisy_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(str(tmp_path))
    run_toy("job_type=train", "trainer.max_steps=10", "test_after_training=false", *PREDICTOR)
    return lambda *words: run_toy("job_type=frontier", *PREDICTOR, *words)


def folders(tmp_path: Path) -> dict[str, Path]:
    return {path.name: path for path in (tmp_path / "runs/toy/frontier").glob("*/*")}


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_every_setting_is_evaluated_on_the_same_rows_with_the_same_noise(
    frontier: Run, tmp_path: Path
) -> None:
    import noisy_family  # pyright: ignore[reportMissingImports]  # written by the fixture

    noisy_family.MADE.clear()
    results = frontier(SWEEP)
    assert len(noisy_family.MADE) == 1
    found = folders(tmp_path)
    assert set(found) == {f"error={error},times={times}" for error in (0.0, 0.4, 0.8) for times in (1, 2)}
    for name, folder in found.items():
        card = json.loads((folder / "card.json").read_text())
        error, times = (float(part.partition("=")[2]) for part in name.split(","))
        assert (card["sampler"]["error"], card["sampler"]["times"]) == (error, times)
        assert list(card["loaders"]) == ["prediction"]
        assert results[f"{name}/test/prediction/nfe_per_sequence"] == times
    # The rows that 0.4 writes wrongly are among those that 0.8 does.
    right = [text.split("5")[0] == text for text in texts(found["error=0.4,times=1"])]
    also = [text.split("5")[0] == text for text in texts(found["error=0.8,times=1"])]
    assert 0 < sum(also) < sum(right) < 20
    assert all(first or not second for first, second in zip(right, also, strict=True))
    assert texts(found["error=0.8,times=1"]) == texts(found["error=0.8,times=2"])


def test_a_grid_is_continued_and_extended(frontier: Run, tmp_path: Path) -> None:
    first = frontier("+sweep={predictor.error: [0.0, 0.4]}")
    found = folders(tmp_path)
    written = (found["error=0.0"] / "metrics.json").stat().st_mtime_ns
    shutil.rmtree(found["error=0.4"])
    results = frontier("+sweep={predictor.error: [0.0, 0.4, 0.8]}")
    assert (found["error=0.0"] / "metrics.json").stat().st_mtime_ns == written
    assert set(folders(tmp_path)) == {"error=0.0", "error=0.4", "error=0.8"}
    name = "error=0.4/test/prediction/exact_match"
    assert results[name] == first[name]
    frontier("+sweep={predictor.error: [0.4]}", "datamodule.test.prediction.max_rows=5")
    assert len(list((tmp_path / "runs/toy/frontier").iterdir())) == 2


def test_other_weights_in_the_same_file_are_evaluated_anew(
    frontier: Run, run_toy: Run, tmp_path: Path
) -> None:
    grid = ("+sweep={predictor.error: [0.0]}", f"ckpt_path={tmp_path / 'runs/toy/checkpoints/last.ckpt'}")
    frontier(*grid)
    frontier(*grid)
    assert len(list((tmp_path / "runs/toy/frontier").iterdir())) == 1
    run_toy("job_type=train", "trainer.max_steps=12", "test_after_training=false", *PREDICTOR)
    frontier(*grid)
    assert len(list((tmp_path / "runs/toy/frontier").iterdir())) == 2


MISTAKES = {
    "sweep: missing": "+sweep={}",
    r"there is no predictor\.eror in the config\. Did you mean predictor\.error": (
        "+sweep={predictor.eror: [0.1]}"
    ),
    r"model\.vocab_size is not a key of the sampler": "+sweep={model.vocab_size: [5]}",
    r"predictor\.error has no values": "+sweep={predictor.error: []}",
    r"predictor\.error has a value twice": "+sweep={predictor.error: [0.1, 0.1]}",
    "error must be a probability": "+sweep={predictor.error: [0.1, 1.5]}",
    r"takes a number here|takes float": "+sweep={predictor.error: [high]}",
}


def test_a_mistake_is_one_line_before_anything_is_evaluated(frontier: Run, tmp_path: Path) -> None:
    for message, sweep in MISTAKES.items():
        with pytest.raises(XLMError, match=message):
            frontier(sweep)
    with pytest.raises(XLMError, match="needs a loader"):
        frontier("+sweep={predictor.error: [0.1]}", "datamodule.test.prediction.uses=[loss]")
    with pytest.raises(XLMError, match=r"predictor\.error is part of a reference"):
        frontier("+sweep={predictor.error: [0.1]}", "predictor.times=${predictor.error}")
    with pytest.raises(XLMError, match="runs in one process"):
        frontier("+sweep={predictor.error: [0.1]}", "trainer.devices=2")
    assert not folders(tmp_path)


def test_points() -> None:
    found = list(points({"a.x": [1, None], "b.x": [True]}))
    assert found == [{"a.x": 1, "b.x": True}, {"a.x": None, "b.x": True}]
    assert [point_name(point) for point in found] == ["a.x=1,b.x=True", "a.x=null,b.x=True"]
    assert point_name({"predictor.sampler": {"_target_": "a.B", "k": 0.5}}) == "sampler=_target_-a.B_k-0.5"
    node = {"a": {"x": 0, "y": 2}}
    assert with_values(node, {"a.x": 1}) == {"a": {"x": 1, "y": 2}}
    assert node == {"a": {"x": 0, "y": 2}}
