"""Kills one training repeatedly at random times, and compares it with an uninterrupted one.

    nice -n 10 python benchmarks/kill_trial.py --kills 30
    nice -n 10 python benchmarks/kill_trial.py --kills 15 --streaming

The toy family of the core's tests with all features that a resume could break: several workers, accumulated
batches, EMA, dropout, warm-up and cosine, validation and checkpoints in between, and a loss that depends on
its rows and on their noise. SIGKILL ends each process a random time after a random step, one in three while a
checkpoint is written, one in six soon after its start. With --streaming the rows are read during training,
shuffled through a buffer and bucketed by length, over several epochs.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "packages" / "xlm-core" / "tests"
STEPS = 200
HARD = (
    "job_type=train",
    "+task.source.token=null",  # different rows, in a loss weighted by their noise
    "+loss.noisy=true",
    "task.source.num_rows=300",
    "datamodule.val.lm.max_rows=20",
    "datamodule.val.prediction.max_rows=20",
    "callbacks=ema",
    "callbacks.ema.decay=0.99",
    "lr_scheduler=cosine",
    "lr_scheduler.warmup=30",
    "optimizer.lr=0.02",
    "+model.dropout=0.3",
    "trainer.accumulate_grad_batches=2",
    "datamodule.train.lm.num_workers=2",
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=20",
    "trainer.log_every_n_steps=1",
    "checkpoint_interval=5",
    "test_after_training=false",
)
ACCIDENT = "+callbacks.accident={{_target_: toy_accidents.{}}}"
STREAMING = ("+task.streaming=true", "datamodule.shuffle_buffer=40", "datamodule.train.lm.bucketing=3")


class Server:
    """Client of the tests' ``process_server.py``: processes forked from one that has imported everything."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self.root = root
        self.overrides = (*HARD, *overrides)
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "process_server.py"],
            env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, name: str, *overrides: str, seconds: float | None = None) -> int:
        """Train; SIGKILL comes after ``seconds``. Gives the exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {
            "root": str(self.root),
            "overrides": [f"job_name={name}", *self.overrides, *overrides],
            "environment": {},
            "log": str(self.root / f"{name}.log"),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        timer = threading.Timer(seconds or 3600.0, os.kill, (pid, signal.SIGKILL))
        timer.start()
        code = int(self.process.stdout.readline().split()[1])
        timer.cancel()
        return code


def curve(run: Path, column: str) -> dict[int, str]:
    """A logged metric by step; a repeated step must have the same value."""
    metrics: dict[int, str] = {}
    for file in run.glob("csv/version_*/metrics.csv"):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if value := row.get(column):
                    assert metrics.setdefault(int(row["step"]), value) == value, (column, row["step"])
    return metrics


def learnt(run: Path) -> dict[str, Any]:
    """Weights, their average, and the optimizer's state at the end."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    names = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
    return {name: content[name] for name in names}


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return one == other


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streaming", action="store_true", help="read the rows during training")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *(STREAMING if options.streaming else ()))
        assert server.train("uninterrupted") == 0
        kills = in_writing = 0
        run = server.root / "runs" / "killed"
        code = -1
        while code != 0:
            overrides: list[str] = []
            wait: float | None = None
            writing = kills % 3 == 2
            if kills < options.kills:
                last = run / "checkpoints" / "last.ckpt"
                step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
                if kills % 6 == 3:
                    wait = chance.uniform(0, 1)
                elif writing:
                    overrides = [ACCIDENT.format(f"KillInSave, step: {step + 1}")]
                else:
                    # Two of three kills make progress, so that all happen before the end.
                    batch = 2 * step + chance.randint(1, 4 * STEPS // options.kills)
                    overrides = [
                        ACCIDENT.format(f"KillSoon, batch: {batch}, seconds: {chance.uniform(0, 0.1)}")
                    ]
            code = server.train("killed", *overrides, seconds=wait)
            kills += code == 128 + signal.SIGKILL
            in_writing += code == 128 + signal.SIGKILL and writing
            print(f"kill {kills}: exit code {code}", flush=True)
        uninterrupted = server.root / "runs" / "uninterrupted"
        same_losses = curve(run, "train/loss") == curve(uninterrupted, "train/loss")
        complete = sorted(curve(run, "train/loss")) == list(range(STEPS))
        validated = curve(run, "val/lm/nll_per_token") == curve(uninterrupted, "val/lm/nll_per_token")
        weights = equal(learnt(run), learnt(uninterrupted))
        server.process.communicate()
    rows = "streamed" if options.streaming else "prepared"
    print(
        f"{rows} rows: {kills} kills, {in_writing} of them while a checkpoint was written; losses of all "
        f"{STEPS} steps bit-identical: {same_losses and complete}; validations: {validated}; weights, "
        f"average and optimizer: {weights}"
    )
    sys.exit(0 if kills == options.kills and same_losses and complete and validated and weights else 1)


if __name__ == "__main__":
    main()
