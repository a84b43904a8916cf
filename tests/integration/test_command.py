"""The command itself, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

XLM = Path(sys.executable).with_name("xlm")


def test_help_names_experiments_and_their_packages(tmp_path: Path) -> None:
    output = subprocess.run([XLM, "--help"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "star_tiny_ilm" in output
    assert "xlm-ilm" in output


MY_LOSS = """
from xlm_ilm import ILMLoss

class MyLoss(ILMLoss):
    def __init__(self, **arguments):
        print("my own loss")
        super().__init__(**arguments)
"""


def test_a_job_runs_and_tells_what_it_did(tmp_path: Path) -> None:
    """With a loss from a file in the working directory."""
    (tmp_path / "my_file.py").write_text(MY_LOSS)
    command = [
        XLM,
        "job_type=train",
        "job_name=fast",
        "experiment=star_tiny_ilm",
        "debug=fast",
        "loss._target_=my_file.MyLoss",
        "task.source.num_rows={train: 64, val: 16, test: 16}",
        "model.trunk.num_layers=1",
        f"datamodule.cache_dir={tmp_path / 'cache'}",
    ]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    printed = (
        "my own loss",
        "xlm train",
        "step 2",
        "generation 1",
        "exact_match",
        "predictions",
        "runs/fast/metrics.json",
    )
    for part in printed:
        assert part in done.stdout, done.stdout
    assert "Warning" not in done.stderr


def test_a_misspelt_experiment_is_refused_with_the_closest(tmp_path: Path) -> None:
    command = [XLM, "job_type=train", "job_name=x", "experiment=star_tny_ilm"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Did you mean star_tiny_ilm" in done.stderr


@pytest.mark.slow  # three processes import everything
def test_torchrun_trains_with_two_processes(tmp_path: Path) -> None:
    """The command of the clusters guide."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "xlm.core", "job_type=train", "job_name=two", "experiment=star_tiny_mlm", "debug=fast"),
        *("trainer.devices=2", "+trainer/strategy=fsdp2", "trainer.accelerator=cpu", "callbacks=ema"),
        *(f"output_dir={tmp_path}", f"datamodule.cache_dir={tmp_path / 'cache'}", "model.trunk.num_layers=2"),
        "task.source.num_rows={train: 64, val: 16, test: 17}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("xlm train") == 1  # one process talks
    rows = [json.loads(line) for line in (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(8))  # debug=fast: eight rows, each once
    assert "test/lm/loss" in json.loads((tmp_path / "two" / "metrics.json").read_text())
