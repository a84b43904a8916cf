"""The folder of a run: what is written there, and what is never overwritten.

``config.yaml`` (composed), ``versions.json``, ``checkpoints/``, ``metrics.json``, ``predictions.jsonl`` and
the loggers' folders. A job other than training writes into a sub-folder of its own, so ``eval`` after
``train`` leaves the training's files alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from xlm.core.config.console import say
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import blamed_on
from xlm.core.config.places import no_checkpoint
from xlm.core.saving import run_record
from xlm.core.saving.checkpoints import LAST, PREVIOUS, Header, damage, newest_valid, write_text_atomically
from xlm.core.saving.processes import is_first
from xlm.core.saving.versions import VERSIONS

MAY_CHANGE = (
    "allow_pickle",
    "checkpoint_interval",
    "ckpt_path",
    "job_type",
    "weights",
    "show_generations",
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
"""Keys in which a resumed training may differ from its beginning."""

KINDS = {
    "best": "the best by the monitored figure; replaced by a better one",
    "step": "one of every so many, kept for ever (callbacks=thinning)",
}
"""Why a checkpoint is kept, by the beginning of its name."""


CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def start_training(self, config: Mapping[str, Any]) -> Header | None:
        """Write the config, or compare it with the one of the run that is to be resumed.

        Returns:
            The checkpoint to resume from, None for a new run.

        Raises:
            XLMError: When the name belongs to a run with another config.
        """
        if not is_first():  # the first process checks and writes for all
            return self.last_checkpoint()
        recorded = self.path / CONFIG
        if recorded.exists() and self._has_begun():
            changes = list(_changes(yaml.safe_load(recorded.read_text()), config))
            if changes:
                raise XLMError(
                    f"The run {self.path} exists with another configuration:\n"
                    + "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changes)
                    + "\nChoose another job_name, or repeat the old settings to resume it."
                )
        elif not recorded.exists() and self.path.exists() and any(self.path.iterdir()):
            raise XLMError(f"{self.path} exists and is not a run (no {CONFIG}). Choose another job_name.")
        _write_record(self.path, config)
        return self.last_checkpoint()

    def _has_begun(self) -> bool:
        """Whether there is more than the record of a start that failed before training."""
        return any(path.name not in (CONFIG, VERSIONS) for path in self.path.iterdir())

    def start_job(self, job_type: str, config: Mapping[str, Any]) -> Path:
        """Make a new folder for the results of one eval or generate job, named after the time."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = self.path / job_type / stamp
        number = 1
        while folder.exists():
            number += 1
            folder = self.path / job_type / f"{stamp}-{number}"
        _write_record(folder, config)
        return folder

    def last_checkpoint(self) -> Header | None:
        """The checkpoint that training resumes from: of the latest step, among those that are whole.

        Files that cannot be used are named on the console and left where they are.
        """
        found = newest_valid(self.checkpoints)
        for path, reason in found.refused.items():
            say(f"{path} is passed over: {reason}")
        return found.header

    def best_checkpoint(self) -> Path:
        """The best checkpoint of the run, else its last.

        Raises:
            XLMError: When the run has none.
        """
        for path in sorted(self.checkpoints.glob("best-*.ckpt"), reverse=True):
            reason = damage(path)
            if reason is None:
                return path
            say(f"{path} is passed over: {reason}")
        last = self.last_checkpoint()
        if last is None:
            raise no_checkpoint(self.path)
        return last.path

    def kept_checkpoints(self) -> list[tuple[str, str]]:
        """The name of each checkpoint of the run, and why it is there."""
        names = sorted(path.name for path in self.checkpoints.glob("*.ckpt"))
        return [(name, _why_kept(name)) for name in names]


def _why_kept(name: str) -> str:
    if name == LAST:
        return "training goes on from here; replaced at each writing"
    if name == PREVIOUS:
        return f"what {LAST} was before; used when that is damaged"
    kind, _, number = name.removesuffix(".ckpt").partition("-")
    if kind in KINDS and number.isdecimal():
        return f"step {int(number):,}: {KINDS[kind]}"
    return "not written by this run's callbacks; never deleted"


def _write_record(folder: Path, config: Mapping[str, Any]) -> None:
    if not is_first():
        return
    with blamed_on("output_dir", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
    run_record.begin(folder)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before, after = dict(_flatten(old)), dict(_flatten(new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not any(
            key == free or key.startswith(f"{free}.") for free in MAY_CHANGE
        ):
            yield key, before.get(key, "(not set)"), after.get(key, "(not set)")


def _flatten(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
