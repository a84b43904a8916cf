"""Every experiment that any package ships is composed, checked and instantiated."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from .running import EXPERIMENTS, composed, run_fast

SMALL_NETWORK = ("model.d_model=32", "model.num_layers=2", "model.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: the families share the prepared rows of a task."""
    return tmp_path_factory.mktemp("cache")


def test_there_are_experiments() -> None:
    assert {f"star_{level}_ilm" for level in ("tiny", "easy", "medium", "hard")} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_instantiated(experiment: str) -> None:
    """The network is made on the meta device: its shapes, not its memory."""
    from xlm.core.build import make, make_slots, make_tokenizer
    from xlm.core.checks import check_call

    config, settings = composed(experiment, "job_type=train", "job_name=x")
    tokenizer = make_tokenizer(config)
    with torch.device("meta"):
        slots = make_slots(config, tokenizer)
    assert sum(parameter.numel() for parameter in slots.model.parameters()) > 0
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    for stage, loaders in settings.datamodule.loaders.items():
        for name in loaders:
            key = f"datamodule.{stage}.{name}.collator"
            check_call(make(config, key), key, "Collator", "examples")
    for key in ("source", "preprocess"):
        inspect.signature(make(config, f"task.{key}"))


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("star_tiny_")])
def test_a_family_trains_evaluates_and_generates(experiment: str, tmp_path: Path, cache: Path) -> None:
    trained = run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK)
    assert 0 <= trained["test/prediction/exact_match"] <= 1
    assert trained["test/prediction/nfe_per_sequence"] > 0
    assert any(name.endswith("/nll") and value > 0 for name, value in trained.items())
    evaluated = run_fast(tmp_path, cache, "eval", experiment, FEW_ROWS, *SMALL_NETWORK)
    assert evaluated == pytest.approx(trained, rel=1e-4)
    run_fast(tmp_path, cache, "generate", experiment, FEW_ROWS, *SMALL_NETWORK)
    [written] = (tmp_path / "fast" / "generate").glob("*/predictions.jsonl")
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(records) == 8
    assert all(record["reference_ids"] for record in records)


@pytest.mark.parametrize(
    "experiment",
    [name for name in EXPERIMENTS if name.startswith("star_") and not name.startswith("star_tiny_")],
)
def test_a_star_experiment_trains(experiment: str, tmp_path: Path, cache: Path) -> None:
    run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK, "trainer.precision=32-true")
    assert (tmp_path / "fast" / "predictions.jsonl").exists()
