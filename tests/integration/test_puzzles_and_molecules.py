"""The puzzles and the molecules in every family: given tokens stay, local copies are read, jobs run."""

import csv
import json
import re
from pathlib import Path

import datasets
import pytest

from xlm.tasks.sudoku_extreme import generated_rows

from .running import EXPERIMENTS, composed, run_fast

SMALL_NETWORK = ("model.trunk.d_model=32", "model.trunk.num_layers=1", "model.trunk.num_heads=2")
FEW_ROWS = "task.source.num_rows={train: 64, val: 16, test: 16}"
FAST = ("test_after_training=false", "trainer.val_check_interval=4", "show_generations=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all: the families share the prepared rows of a task."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("sudoku_tiny_")])
def test_a_family_learns_sudoku_and_keeps_the_clues(experiment: str, tmp_path: Path, cache: Path) -> None:
    metrics = run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK, *FAST)
    assert metrics["val/prediction/broken_clues"] == 0.0
    assert 0 <= metrics["val/prediction/board_accuracy"] <= metrics["val/prediction/cell_accuracy"] <= 1
    assert metrics["val/lm/nll"] > 0


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("safe_tiny_")])
def test_a_family_learns_molecules(experiment: str, tmp_path: Path, cache: Path) -> None:
    metrics = run_fast(tmp_path, cache, "train", experiment, FEW_ROWS, *SMALL_NETWORK, *FAST)
    assert 0 <= metrics["val/prediction/quality"] <= metrics["val/prediction/validity"] <= 1
    assert metrics["val/lm/nll"] > 0


@pytest.mark.parametrize("family", ["mdlm", "ilm"])
def test_given_fragments_stay_in_the_generations(family: str, tmp_path: Path, cache: Path) -> None:
    """Cells in place for the one, tokens in front for the other."""
    overrides = (
        "task=safe_tiny_motif",
        "datamodule.val.prediction.columns=null",
        "datamodule.test.prediction.columns=null",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
    )
    metrics = run_fast(
        tmp_path, cache, "train", f"safe_tiny_{family}", FEW_ROWS, *SMALL_NETWORK, *overrides, *FAST[2:]
    )
    assert metrics["test/prediction/given_kept"] == 1.0
    records = [
        json.loads(line) for line in (tmp_path / "fast" / "predictions.jsonl").read_text().splitlines()
    ]
    for record in records:
        num_given = sum(record["fixed"])
        assert 0 < num_given < len(record["reference_ids"])
        assert record["ids"][:num_given] == record["reference_ids"][:num_given]


def test_a_local_copy_goes_the_way_of_the_published_set(tmp_path: Path) -> None:
    """The published layout in a folder; a puzzle with two solutions is refused and counted."""
    from xlm.core.training.assembly import make_parts, make_prepared
    from xlm.core.training.run import resolve

    copy = tmp_path / "copy"
    copy.mkdir()
    rows = list(generated_rows("train", level="tiny", num_rows={"train": 60}, seed=0))
    rows[7]["question"] = "." * 70 + rows[7]["answer"][70:]
    for split in ("train", "test"):
        with (copy / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["source", "question", "answer", "rating"])
            writer.writeheader()
            writer.writerows(rows)
    config = composed(
        "sudoku_extreme_mdlm",
        "job_type=prepare_data",
        "job_name=x",
        f"source={copy}",
        f"datamodule.cache_dir={tmp_path / 'cache'}",
        "task.source.one_in=3",
    )
    run = resolve(config)
    prepared = make_prepared(run, make_parts(run))
    cards = prepared.cards
    assert cards["train"].rows + cards["val"].rows == cards["test"].rows == 59
    assert cards["val"].rows > 0
    assert cards["test"].counts.refused == 1
    assert cards["test"].tokens == 59 * 81


def test_published_molecules_are_streamed_from_a_local_copy(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published layout and column; training reads a stream, validation is prepared."""
    molecules = ["c13ccccc14.CC2=O.C4(=O)O.O23", "CCO", "C1CCCCC1", "N3CCNCC3.c13ccccc1", "C" * 100]
    for split, count in {"train": 40, "validation": 10, "test": 10}.items():
        folder = tmp_path / "copy" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"input": molecules[n % 5], "mc_labels": [0.5]} for n in range(count)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001-0.parquet")
    metrics = run_fast(
        tmp_path,
        cache,
        "train",
        "safe_mlm",
        f"source={tmp_path / 'copy'}",
        "task.max_target_length=64",
        "trainer.precision=32-true",
        "trainer.accumulate_grad_batches=1",
        *SMALL_NETWORK,
        *FAST,
    )
    assert metrics["val/lm/nll"] > 0
    assert "val/prediction/diversity" in metrics
    printed = capsys.readouterr().out
    # Two of the five cannot be cut, one of 100 atoms is too long.
    assert "val: of 10 rows read 2 too long (task.length_limit), dropped, 4 without a bond" in printed
    assert re.search(r"stream: of 40 rows read 8 too long .*, dropped, 16 without a bond", printed)
