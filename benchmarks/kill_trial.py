"""Kills one training again and again at random moments, and compares it with an undisturbed one.

    nice -n 10 python benchmarks/kill_trial.py --kills 30

The toy family of the core's tests with everything that a resumed run could get wrong at once: several
workers, accumulated batches, EMA, dropout, warm-up and cosine, validation and checkpoints in between. Each
process dies by SIGKILL after a random time or, one in three, in the middle of writing a checkpoint.
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
import time
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "packages" / "xlm-core" / "tests"
STEPS = 200
HARD = (
    "job_type=train",
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


class Server:
    """Client of the tests' ``process_server.py``: processes forked from one that has imported everything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds = 0.0
        """How long the last process lived."""
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
            "overrides": [f"job_name={name}", *HARD, *overrides],
            "environment": {},
            "log": str(self.root / f"{name}.log"),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        start = time.perf_counter()
        timer = threading.Timer(seconds or 3600.0, os.kill, (pid, signal.SIGKILL))
        timer.start()
        code = int(self.process.stdout.readline().split()[1])
        timer.cancel()
        self.seconds = time.perf_counter() - start
        return code


def curve(run: Path, column: str) -> dict[int, str]:
    """A logged figure by step; a step that was done twice must have given the same."""
    figures: dict[int, str] = {}
    for file in run.glob("csv/version_*/metrics.csv"):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if figure := row.get(column):
                    assert figures.setdefault(int(row["step"]), figure) == figure, (column, row["step"])
    return figures


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
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        assert server.train("undisturbed") == 0
        seconds = server.seconds
        kills = in_writing = 0
        run = server.root / "runs" / "killed"
        code = -1
        while code != 0:
            overrides: list[str] = []
            wait: float | None = None
            if kills < options.kills:
                if kills % 3 == 2:
                    last = run / "checkpoints" / "last.ckpt"
                    step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
                    node = f"{{_target_: toy_accidents.KillInSave, step: {step + 1}}}"
                    overrides = [f"+callbacks.accident={node}"]
                else:
                    wait = chance.uniform(0.02, 0.5) * seconds
            code = server.train("killed", *overrides, seconds=wait)
            kills += code == 128 + signal.SIGKILL
            in_writing += code == 128 + signal.SIGKILL and bool(overrides)
            print(f"kill {kills}: exit code {code}", flush=True)
        undisturbed = server.root / "runs" / "undisturbed"
        same_losses = curve(run, "train/loss") == curve(undisturbed, "train/loss")
        complete = sorted(curve(run, "train/loss")) == list(range(STEPS))
        validated = curve(run, "val/lm/nll_per_token") == curve(undisturbed, "val/lm/nll_per_token")
        weights = equal(learnt(run), learnt(undisturbed))
        server.process.communicate()
    print(
        f"{kills} kills, {in_writing} of them while a checkpoint was written; losses of all {STEPS} steps "
        f"bit-identical: {same_losses and complete}; validations: {validated}; weights, average and "
        f"optimizer: {weights}"
    )
    sys.exit(0 if same_losses and complete and validated and weights else 1)


if __name__ == "__main__":
    main()
