"""The jobs that gpu.py runs through the harness: resumed, sharded with FSDP2, in 16-mixed.

Short trainings of star_tiny_ilm, all at once, compared by their curves and their last checkpoints.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

STEPS, SMALL_STEPS = 400, 40
COMMON = (
    "job_type=train",
    "experiment=star_tiny_ilm",
    "test_after_training=false",
    "trainer.val_check_interval=null",
    "trainer.log_every_n_steps=1",
    "task.source.num_rows={train: 5000, val: 16, test: 16}",
    "callbacks.progress=null",
)
RUNS: dict[str, tuple[str, ...]] = {
    "uninterrupted": (),
    "again": (),
    "interrupted": (),
    "fsdp2": ("+trainer/strategy=fsdp2",),
    "16-mixed": ("trainer.precision=16-mixed",),
    "bf16-mixed": ("trainer.precision=bf16-mixed",),
}


class Run:
    """One training."""

    def __init__(self, name: str, root: Path, overrides: tuple[str, ...]) -> None:
        self.name = name
        self.root = root
        self.folder = root / "runs" / name
        self.log = root / f"{name}.log"
        self.arguments = [f"job_name={name}", f"output_dir={root / 'runs'}", *COMMON, *overrides]
        self.start()

    def start(self) -> None:
        """Start, or start again, which resumes."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "XLM_CACHE": str(self.root / "cache")}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xlm.core", *self.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.root,
            )

    @property
    def checkpoint(self) -> Path:
        """Path of its last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    def curve(self) -> dict[int, float]:
        """Training loss by step."""
        found: dict[int, float] = {}
        for file in self.folder.glob("csv/version_*/metrics.csv"):
            with file.open() as lines:
                found |= {
                    int(row["step"]): float(row["train/loss"])
                    for row in csv.DictReader(lines)
                    if row.get("train/loss")
                }
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        state: dict[str, torch.Tensor] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")[
            "state_dict"
        ]
        return state

    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"exit code {self.process.returncode}: {lines[-1] if lines else 'no output'}"[:400]


def tell(job: str, result: str) -> None:
    """Report the result of a job."""
    print(json.dumps({"what": "job", "job": job, "result": result}), flush=True)


def tell_error(job: str, error: str) -> None:
    """Report an error."""
    print(json.dumps({"what": f"job: {job}", "error": error}), flush=True)


def apart(one: Run, other: Run) -> float:
    """Largest difference of two runs' weights."""
    mine, others = one.weights(), other.weights()
    return max(float((mine[name].float() - others[name].float()).abs().max()) for name in mine)


def finish(run: Run, deadline: float) -> None:
    """Wait for the run; stop it when time is up."""
    try:
        run.process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        run.process.kill()
        run.process.wait()


def interrupt(run: Run, deadline: float) -> int | None:
    """End the run by SIGTERM after its first checkpoint, and start it again; the step at which it stopped."""
    while not run.checkpoint.exists() and run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    run.process.send_signal(signal.SIGTERM)
    finish(run, deadline)
    if not run.checkpoint.exists():
        return None
    step: int = torch.load(run.checkpoint, weights_only=True, map_location="cpu")["global_step"]
    run.start()
    return step


def compare(runs: dict[str, Run], stopped: int | None, steps: int) -> None:
    """Report the comparison of the finished runs."""
    good = {name for name, run in runs.items() if run.process.returncode == 0}
    for name in sorted(set(runs) - good):
        tell_error(name, runs[name].last_words())
    if "uninterrupted" not in good:
        return
    first = runs["uninterrupted"]
    reference = first.curve()
    if {"interrupted", "again"} <= good and stopped is not None:
        tell(
            "resumed",
            f"stopped at step {stopped} of {steps} and resumed; largest difference of a weight at the end "
            f"{apart(first, runs['interrupted']):.1e}, of two uninterrupted runs "
            f"{apart(first, runs['again']):.1e}",
        )
    for name in ("fsdp2", "16-mixed", "bf16-mixed"):
        if name in good:
            curve = runs[name].curve()
            start = max(abs(curve[step] - reference[step]) / reference[step] for step in range(10))
            tell(
                name,
                f"{len(curve)} steps; loss at the end {curve[steps - 1]:.4f} "
                f"(32-true {reference[steps - 1]:.4f}); first 10 steps within {start:.1e}",
            )


def main() -> None:
    """Run all jobs side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--small", action="store_true", help="on the CPU, with what runs there")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    steps = SMALL_STEPS if options.small else STEPS
    settings = (
        f"trainer.max_steps={steps}",
        f"checkpoint_interval={steps // 8}",
        f"trainer.accelerator={'cpu' if options.small else 'gpu'}",
        "trainer.devices=1",
    )
    names = ("uninterrupted", "again", "interrupted", "fsdp2") if options.small else tuple(RUNS)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {}
        try:
            for name in names:
                runs[name] = Run(name, Path(folder), (*settings, *RUNS[name]))
            stopped = interrupt(runs["interrupted"], deadline)
            for run in runs.values():
                finish(run, deadline)
        finally:
            for run in runs.values():
                run.process.kill()
                run.process.wait()
        compare(runs, stopped, steps)


if __name__ == "__main__":
    main()
