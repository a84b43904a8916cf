"""Every experiment that any package ships is composed, checked and instantiated."""

import inspect
import json
from pathlib import Path

import pytest
import torch

from .published import FEW_STEPS, Published
from .running import EXPERIMENTS, composed, run_fast

SMALL_NETWORK = ("model.trunk.d_model=32", "model.trunk.num_layers=2", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: the families share the prepared rows of a task."""
    return tmp_path_factory.mktemp("cache")


def test_there_are_experiments() -> None:
    assert {f"star_{level}_ilm" for level in ("tiny", "easy", "medium", "hard")} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_instantiated(
    experiment: str, published: Published, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The network is made on the meta device: its shapes, not its memory."""
    from xlm.core.config.build import make
    from xlm.core.config.checks import check_call
    from xlm.core.training.assembly import make_slots
    from xlm.core.training.run import resolve

    # One cache for all, where a tokenizer that is trained finds itself again.
    cache = f"datamodule.cache_dir={tmp_path_factory.getbasetemp() / 'instantiated'}"
    overrides = published.overrides(experiment)
    run = resolve(composed(experiment, "job_type=train", "job_name=x", cache, *overrides))
    # First, so that the family is imported here: a constant of a module made below would stay on meta.
    for stage, loaders in run.settings.datamodule.loaders.items():
        for name, loader in loaders.items():
            key = f"datamodule.{stage}.{name}.collator"
            check_call(make(loader.collator, key), key, "Collator", "examples")
    with torch.device("meta"):
        slots = make_slots(run)
    assert sum(parameter.numel() for parameter in slots.model.parameters()) > 0
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    inspect.signature(make(run.settings.task.source, "task.source"))
    inspect.signature(make(run.settings.task.preprocess, "task.preprocess"))


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("star_tiny_")])
def test_a_family_trains_evaluates_and_generates(experiment: str, tmp_path: Path, cache: Path) -> None:
    trained = run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK)
    assert 0 <= trained["test/prediction/exact_match"] <= 1
    assert trained["test/prediction/nfe_per_sequence"] > 0
    assert any(name.endswith("/nll") and value > 0 for name, value in trained.items())
    [curves] = (tmp_path / "fast").glob("csv/version_*/metrics.csv")
    header = curves.read_text().splitlines()[0].split(",")
    terms = {name.removeprefix("train/") for name in header if name.startswith("train/")}
    assert len(terms) > 1
    assert {f"{stage}/lm/{term}" for stage in ("val", "test") for term in terms} <= {*header, *trained}
    evaluated = run_fast(tmp_path, cache, "eval", experiment, FEW_ROWS, *SMALL_NETWORK)
    for metrics in (trained, evaluated):
        assert metrics.pop("test/prediction/seconds_per_sequence") > 0
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
    few = (FEW_ROWS, *FEW_STEPS.get(experiment.rpartition("_")[2], ()), *SMALL_NETWORK)
    run_fast(tmp_path, cache, "train", experiment, *few, "trainer.precision=32-true")
    assert (tmp_path / "fast" / "predictions.jsonl").exists()


ONE_BATCH = (
    "model.trunk.d_model=16",
    "model.trunk.num_layers=1",
    "model.trunk.num_heads=1",
    "trainer.precision=32-true",
    "trainer.accumulate_grad_batches=1",
    "trainer.max_steps=2",
    "datamodule.batch_size=4",
    "datamodule.train.lm.num_workers=0",
    *(
        f"datamodule.{stage}.{loader}.max_rows=4"
        for stage in ("val", "test")
        for loader in ("lm", "prediction")
    ),
)


@pytest.mark.parametrize(
    "experiment", [name for name in EXPERIMENTS if name.startswith(("lm1b", "openwebtext", "text_tiny"))]
)
def test_published_data_are_prepared_and_trained_on(
    experiment: str, published: Published, tmp_path: Path, cache: Path
) -> None:
    overrides = [*published.overrides(experiment), *published.few_tokens(experiment), *ONE_BATCH]
    if experiment.endswith("_arlm"):  # the others find the rows in the cache, or train prepares them
        run_fast(tmp_path, cache, "prepare_data", experiment, *overrides)
    results = run_fast(tmp_path, cache, "train", experiment, *overrides)
    # An untrained network is near the uniform distribution: at most the log of the vocabulary.
    assert 0 < results["test/lm/nll_per_token"] < 40
    assert 0 <= results["test/prediction/tokens"] <= 16
    records = [
        json.loads(line) for line in (tmp_path / "fast" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(records) == 4
    assert all(record["prompt_ids"] == record["reference_ids"] == [] for record in records)
