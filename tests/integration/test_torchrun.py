"""The command of the clusters guide: ``torchrun`` starts two processes that train together.

uv run nox -s slow
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # three processes import everything


def test_torchrun_trains_with_two_processes(tmp_path: Path) -> None:
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
