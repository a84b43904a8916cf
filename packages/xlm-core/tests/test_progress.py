"""Evaluations that are interrupted and continued, and generation in the order of lengths."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from xlm.core.config.errors import XLMError
from xlm.core.data.order import EvaluationOrder
from xlm.core.evaluation.progress import LOCK, STATE

from .conftest import Run
from .runs import repeatable

USES = "datamodule.test.lm.uses=[loss,likelihood]"


@pytest.fixture
def run(run_toy: Run, tmp_path: Path) -> Path:
    run_toy("job_type=train", "trainer.max_steps=10", "test_after_training=false")
    return tmp_path / "runs" / "toy"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of all rows that the predictor gets after the checks of its slot."""
    import toy_family

    seen: list[int] = []
    limit: list[int] = [12]
    original = toy_family.ToyPredictor.__call__

    def call(self: Any, model: Any, batch: Any, seeds: torch.Tensor, *, trace: bool = False) -> Any:
        if len(seeds) > 2:  # two rows are those of the check
            if limit and len(seen) >= limit[0]:
                limit.clear()
                raise KeyboardInterrupt
            seen.extend(seeds.tolist())
        return original(self, model, batch, seeds, trace=trace)

    monkeypatch.setattr(toy_family.ToyPredictor, "__call__", call)
    return seen


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without seconds."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in path.read_text().splitlines()
    ]


def test_an_interrupted_evaluation_continues_without_repeating_rows(
    run: Path, run_toy: Run, evaluated: list[int]
) -> None:
    with pytest.raises(SystemExit):
        run_toy("job_type=eval", USES)
    [folder] = (run / "eval").iterdir()
    assert (folder / STATE.format(0)).exists()
    assert len(evaluated) == 12
    # The line of a row after the last state, as a killed process leaves it.
    with (folder / ".predictions.jsonl.rank0").open("a") as part:
        part.write('{"loader": "test/prediction", "row"')
    continued = run_toy("job_type=eval", USES)
    assert [path.name for path in (run / "eval").iterdir()] == [folder.name]
    assert len(evaluated) == len(set(evaluated)) == 20
    assert not (folder / STATE.format(0)).exists()
    whole = run_toy("job_type=eval", USES)
    assert repeatable(continued) == repeatable(whole)
    [other] = [path for path in (run / "eval").iterdir() if path != folder]
    for name in ("predictions.jsonl", "likelihoods.jsonl"):
        assert lines(folder / name) == lines(other / name)


def test_another_config_does_not_continue_it(run: Path, run_toy: Run, evaluated: list[int]) -> None:
    with pytest.raises(SystemExit):
        run_toy("job_type=eval")
    [folder] = (run / "eval").iterdir()
    run_toy("job_type=eval", "seed=7")
    assert (folder / STATE.format(0)).exists()
    assert len(list((run / "eval").iterdir())) == 2
    with FileLock(folder / LOCK):  # as long as another process evaluates there
        run_toy("job_type=eval")
    assert (folder / STATE.format(0)).exists()
    assert len(list((run / "eval").iterdir())) == 3


def test_other_weights_in_the_same_file_do_not_continue_it(
    run: Path, run_toy: Run, evaluated: list[int]
) -> None:
    last = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(SystemExit):
        run_toy("job_type=eval", last)
    run_toy("job_type=train", "trainer.max_steps=12", "test_after_training=false")
    evaluated.clear()  # those before, and of validation
    run_toy("job_type=eval", last)
    assert len(evaluated) == 20
    assert len(list((run / "eval").iterdir())) == 2


def test_two_processes_do_not_write_one_folder(run: Path, tmp_path: Path) -> None:
    from xlm.core.evaluation.progress import Progress

    progress = Progress(tmp_path, "a")
    with progress.kept(), pytest.raises(XLMError, match="by another process"), Progress(tmp_path, "a").kept():
        pass


@pytest.mark.parametrize("world_size", [1, 2])
def test_rows_in_the_order_of_their_lengths(world_size: int) -> None:
    lengths = np.array([3, 1, 5, 3, 2])
    batches = [
        list(
            EvaluationOrder(
                num_rows=5, batch_size=2, seed=1, rank=rank, world_size=world_size, lengths=lengths
            )
        )
        for rank in range(world_size)
    ]
    keys = [key for rank in batches for batch in rank for key in batch]
    assert sorted(key.row for key in keys) == list(range(5))
    if world_size == 1:
        assert [key.row for key in keys] == [2, 0, 3, 4, 1]
    plain = next(iter(EvaluationOrder(num_rows=5, batch_size=5, seed=1, rank=0, world_size=1)))
    assert {key.row: key.seed for key in keys} == {key.row: key.seed for key in plain}
    assert all(key.place == key.row for key in keys)
