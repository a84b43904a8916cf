"""The folder of a run: its files, and which are never overwritten.

``config.yaml`` (composed), ``versions.json``, ``checkpoints/``, ``metrics.json``, ``predictions.jsonl`` and
the loggers' folders. A job other than training writes into its own sub-folder, so ``eval`` after
``train`` does not change the files of training.
"""

import itertools
import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from xlm.core.config.console import say
from xlm.core.config.differences import flatten
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import blamed_on
from xlm.core.config.places import no_checkpoint
from xlm.core.config.recorded import read_config
from xlm.core.config.run_files import CHECKPOINTS, CONFIG
from xlm.core.saving import run_record
from xlm.core.saving.checkpoints import LAST, PREVIOUS, damage, write_text_atomically
from xlm.core.saving.resume import Fits, Found, newest_valid
from xlm.core.saving.run_lock import is_lock, only_writer

MAY_CHANGE = (
    "allow_pickle",
    "checkpoint_interval",
    "ckpt_path",
    "job_type",
    "weights",
    "show_generations",
    "show_probabilities",
    "trace",
    "sampler_likelihood",
    "test_after_training",
    "callbacks",
    "logger",
    "hydra",
    "hub",
    "trust_remote_code",
    "trainer.max_steps",
    "trainer.devices",
    "trainer.accelerator",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
)
"""Keys that may change when a run is resumed."""

KINDS = {
    "best": "the best by the monitored metric; replaced by a better one",
    "step": "periodic checkpoint, never deleted (callbacks=thinning)",
}
"""Why a checkpoint is kept, by the beginning of its name."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @contextmanager
    def writing(self) -> Generator[None]:
        """Lock the run for this process and its other ranks.

        Raises:
            XLMError: If another training has the lock, or the folder is not a run.
        """
        if not is_first():  # rank 0 locks the run for all
            yield
            return
        if not (self.path / CONFIG).exists() and any(self._content()):
            raise XLMError(f"{self.path} exists and is not a run (no {CONFIG}). Choose another job_name.")
        with only_writer(self.path):
            yield

    def start_training(self, config: Mapping[str, Any]) -> None:
        """Write the config, or compare it with that of the run to resume.

        Raises:
            XLMError: If the name belongs to a run with another config.
        """
        if not is_first():  # rank 0 checks and writes for all
            return
        recorded = self.path / CONFIG
        changes = list(differences(self.read_config(), config)) if recorded.exists() else []
        if changes and self._has_results():
            raise XLMError(
                f"The run {self.path} exists with another config:\n"
                + "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changes)
                + "\nChoose another job_name, or repeat the old settings to resume it. To start from its "
                f"state with the new ones: job_name=NEW from={self.path}"
            )
        if changes:
            say(f"{self.path} has no checkpoint and no metrics of its first start: restarted")
        write_record(self.path, config)

    def read_config(self) -> dict[str, Any]:
        """The config that the run was started with.

        Raises:
            XLMError: If it is missing or not a config.
        """
        return read_config(self.path / CONFIG)

    def _content(self) -> Iterator[Path]:
        """The content of the folder, without the lock."""
        return (path for path in self.path.glob("*") if not is_lock(path))

    def has_checkpoints(self) -> bool:
        """Whether there are any, usable or not."""
        return any(self.checkpoints.glob("*.ckpt"))

    def _has_results(self) -> bool:
        """Whether there is a checkpoint or a metric: more than after a failed start."""
        if self.has_checkpoints() or any(self.path.glob("metrics.json*")):
            return True
        return any(file.stat().st_size for file in self.path.glob("csv/*/metrics.csv"))

    def start_job(self, job_type: str, config: Mapping[str, Any]) -> Path:
        """Create a new folder for the results of one eval or generate job, named after the time."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self.path / job_type / stamp
        number = 1
        while folder.exists():
            number += 1
            folder = self.path / job_type / f"{stamp}-{number}"
        write_record(folder, config)
        return folder

    def jobs(self, job_type: str) -> list[Path]:
        """The folders of earlier jobs of one type, the oldest first."""
        return sorted(path for path in (self.path / job_type).glob("*") if path.is_dir())

    def last_checkpoint(self, fits: Fits | None = None) -> Found:
        """Find the checkpoint from which training resumes: the latest intact one.

        Unusable files are printed and kept.

        Args:
            fits: Returns why a checkpoint does not fit the run; None if it fits.
        """
        found = newest_valid(self.checkpoints, fits)
        for path, reason in found.refused.items():
            say(f"{path} is skipped: {reason}")
        return found

    def resumable(self, fits: Fits) -> Found:
        """The same for training, which starts with new weights only if there is no checkpoint.

        Raises:
            XLMError: If there are checkpoints and none is usable.
        """
        found = self.last_checkpoint(fits)
        if found.header is None and found.refused:
            raise XLMError(
                f"No checkpoint in {self.checkpoints} is usable, for the reasons above. To restart the run, "
                "move them away."
            )
        return found

    def put_aside(self, refused: Iterable[Path]) -> None:
        """Rename the files that training would overwrite."""
        for path in refused:
            if path.name in (LAST, PREVIOUS):
                names = (path.with_name(f"{path.name}.refused{end}") for end in _endings())
                kept = next(name for name in names if not name.exists())
                path.rename(kept)
                say(f"{path} is kept as {kept.name}")

    def best_checkpoint(self) -> Path:
        """The best checkpoint of the run, else its last.

        Raises:
            XLMError: If the run has none.
        """
        for path in sorted(self.checkpoints.glob("best-*.ckpt"), reverse=True):
            reason = damage(path)
            if reason is None:
                return path
            say(f"{path} is skipped: {reason}")
        last = self.last_checkpoint().header
        if last is None:
            raise no_checkpoint(self.path)
        return last.path

    def kept_checkpoints(self) -> list[tuple[str, str]]:
        """The name of each checkpoint of the run, and why it is kept."""
        names = sorted(path.name for path in self.checkpoints.glob("*.ckpt"))
        return [(name, _why_kept(name)) for name in names]


def _endings() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in itertools.count(2))


def _why_kept(name: str) -> str:
    if name == LAST:
        return "training resumes from here; replaced regularly"
    if name == PREVIOUS:
        return f"the previous {LAST}; used if that is damaged"
    kind, _, number = name.removesuffix(".ckpt").partition("-")
    if kind in KINDS and number.isdecimal():
        return f"step {int(number):,}: {KINDS[kind]}"
    return "not written by this run's callbacks; never deleted"


def write_record(folder: Path, config: Mapping[str, Any]) -> None:
    """Begin a job in a folder: write its config and its environment (on rank 0).

    Raises:
        XLMError: If the folder cannot be created.
    """
    if not is_first():
        return
    with blamed_on("output_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
    run_record.begin(folder)


def is_first() -> bool:
    """Whether this process has rank 0, which prints and writes (torchrun, SLURM, Lightning's launcher)."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0")) == 0


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = MAY_CHANGE
) -> Iterator[tuple[str, Any, Any]]:
    """Keys that differ between two configs, with both values.

    Args:
        old, new: The configs.
        ignored: Keys that are ignored, with all below them.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not any(
            key == free or key.startswith(f"{free}.") for free in ignored
        ):
            yield key, before.get(key, "(not set)"), after.get(key, "(not set)")
