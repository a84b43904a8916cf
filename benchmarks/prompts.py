"""Speed with a prompt that sees its target and with one that does not, on a CPU.

    OMP_NUM_THREADS=1 uv run python benchmarks/prompts.py

star_easy with untrained networks of width 128 and 4 layers, batches of 64 rows and the predictor of the
experiment: an untrained ilm does not stop before its limit, an untrained mlm fills all cells. A training
step is forward and backward pass. One thread and the CPU seconds of the process; both networks in turns, the
median of the turns.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from loop import composed
from training import cpu_seconds

from xlm.core.data.datamodule import DataModule
from xlm.core.training.assembly import assemble
from xlm.core.training.harness import Harness
from xlm.core.training.run import resolve

ROWS = 64


def assembled(family: str, folder: Path, *, sees_target: bool) -> tuple[Harness, DataModule]:
    """The parts of star_easy with the small network."""
    changes = (f"model.prompt_sees_target={str(sees_target).lower()}", f"task.source.num_rows.test={ROWS}")
    sizes = [f"model.trunk.{size}" for size in ("d_model=128", "num_layers=4", "num_heads=4", "dropout=0")]
    torch.manual_seed(0)
    return assemble(resolve(composed(folder, f"star_easy_{family}", 1000, *changes, *sizes)))


class Work:
    """Batches and calls of one network."""

    def __init__(self, family: str, folder: Path, *, sees_target: bool) -> None:
        harness, data = assembled(family, folder, sees_target=sees_target)
        self.model, self.slots = harness.model, harness.slots
        self.batch: Any = data.collate("train", "lm")(data.first_examples("train", "lm", ROWS)).batch
        loaded = data.collate("test", "prediction")(data.first_examples("test", "prediction", ROWS))
        self.prompts: Any = loaded.batch

    def step(self) -> None:
        """A forward and a backward pass."""
        self.model.train().zero_grad()
        self.slots.loss(self.model, self.batch).loss_sum.backward()

    def generate(self) -> None:
        """Targets for a batch of prompts."""
        self.slots.predictor(self.model.eval(), self.prompts, torch.arange(ROWS))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["ilm", "mlm", "mdlm"])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("family  prompt sees target   step      sequences per CPU second")
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            works = {sees: Work(family, Path(folder), sees_target=sees) for sees in (True, False)}
        seconds: dict[tuple[bool, str], list[float]] = {}
        for _ in range(options.repeats + 1):
            for sees, work in works.items():
                for name in ("step", "generate"):
                    seconds.setdefault((sees, name), []).append(cpu_seconds(getattr(work, name)))
        # The first turn warms up.
        median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
        for sees in works:
            step, rate = 1000 * median[sees, "step"], ROWS / median[sees, "generate"]
            print(f"{family:<8}{str(sees).lower():<21}{step:.0f} ms {rate:15.0f}", flush=True)


if __name__ == "__main__":
    main()
