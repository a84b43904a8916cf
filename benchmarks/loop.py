"""Overhead of the harness over a plain PyTorch loop with the same network, batches, optimizer and clipping.

    OMP_NUM_THREADS=1 uv run python benchmarks/loop.py
    OMP_NUM_THREADS=1 uv run python benchmarks/loop.py --profile

After every few steps of a training, a plain loop makes the same steps with a copy of the network, so both run
under the same load. Time is CPU time of the process. At the end both copies must have the same weights (with
AdamW: Muon's steps depend on the last bit of small singular values). --profile shows the time of the
harness's own functions.
"""

import argparse
import copy
import cProfile
import logging
import pstats
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from typing_extensions import override

from xlm.core.command.compose import CORE_CONFIGS, check, register_search_path
from xlm.core.training.assembly import assemble
from xlm.core.training.harness import Harness
from xlm.core.training.run import resolve
from xlm.core.training.trainer import HARMLESS_WARNINGS, make_trainer

WINDOW = 20
"""Number of steps of each loop per turn."""


class PlainLoop(Callback):
    """Makes the same steps as the harness, in turns with it, and times both."""

    def __init__(self, harness: Harness, batches: Iterator[Any], *, num_steps: int, clip: float) -> None:
        self.slots = harness.slots
        self.model = copy.deepcopy(harness.model)
        self.optimizer = self.slots.optimizer(self.model.named_parameters())
        self.scheduler = self.slots.lr_scheduler(self.optimizer, num_steps=num_steps)
        self.batches = batches
        self.clip = clip
        self.seconds: dict[str, list[float]] = {"harness": [], "plain loop": []}
        self.start = 0.0

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.start = time.process_time()

    @override
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % WINDOW:
            return
        self.seconds["harness"].append(time.process_time() - self.start)
        start = time.process_time()
        self.model.train()
        for _ in range(WINDOW):
            self.step()
        self.seconds["plain loop"].append(time.process_time() - start)
        self.start = time.process_time()

    def step(self) -> None:
        """One step of a plain loop."""
        output = self.slots.loss(self.model, next(self.batches).batch)
        (output.loss_sum / output.loss_count.clamp(min=1)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


def composed(root: Path, experiment: str, steps: int, *more: str) -> DictConfig:
    """The experiment's config without validation, with its usual curves and checkpoints."""
    register_search_path()
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        return compose(
            "config",
            [
                "job_type=train",
                "job_name=loop",
                f"experiment={experiment}",
                "optimizer=adamw",
                f"output_dir={root / 'runs'}",
                f"datamodule.cache_dir={root / 'cache'}",
                f"trainer.max_steps={steps}",
                "trainer.val_check_interval=null",
                "trainer.accelerator=cpu",
                "trainer.devices=1",
                "task.source.num_rows={train: 5000, val: 64, test: 16}",
                *more,
            ],
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--experiment", default="star_tiny_ilm")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        config = composed(Path(folder), options.experiment, options.steps)
        check(config)
        torch.manual_seed(0)
        harness, datamodule = assemble(run := resolve(config))
        trainer = make_trainer(run, Path(folder, "runs", "loop"))
        if options.profile:
            profile(lambda: trainer.fit(harness, datamodule))
            return
        clip = run.settings.trainer.gradient_clip_val or float("inf")
        batches = iter(datamodule.train_dataloader())
        plain = PlainLoop(harness, batches, num_steps=options.steps, clip=clip)
        trainer.callbacks.append(plain)
        trainer.fit(harness, datamodule)
    for mine, other in zip(harness.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    # The first window warms both up.
    milliseconds = {
        name: statistics.median(values[1:]) / WINDOW * 1000 for name, values in plain.seconds.items()
    }
    ratios = [mine / other for mine, other in zip(*plain.seconds.values(), strict=True)][1:]
    for name, value in milliseconds.items():
        print(f"{name:<12}{value:8.2f} ms of CPU a step (median of {len(ratios)} windows of {WINDOW} steps)")
    print(f"ratio       {statistics.median(ratios):8.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


def profile(run: Any) -> None:
    """Print the functions with the most time, own and cumulative."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    stats = pstats.Stats(profiler).strip_dirs()
    stats.sort_stats("tottime").print_stats(30)
    stats.sort_stats("cumulative").print_stats(70)


if __name__ == "__main__":
    main()
