"""Lightning's trainer from the config, and the operations of jobs on it."""

import logging
import platform
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy

from xlm.core.config.build import make, make_all
from xlm.core.config.console import console, say
from xlm.core.config.errors import XLMError
from xlm.core.data import DataModule
from xlm.core.evaluation.predictions import PredictionWriter
from xlm.core.evaluation.progress import Progress
from xlm.core.saving import run_record
from xlm.core.saving.checkpoints import AtomicCheckpointIO
from xlm.core.saving.run_folder import is_first
from xlm.core.training.harness import Harness
from xlm.core.training.precision import HalfWeights
from xlm.core.training.processor import note_on_precision
from xlm.core.training.run import Run
from xlm.core.training.trainer_arguments import check_device, check_trainer_arguments

HARMLESS_WARNINGS = (
    ".*does not have many workers.*",  # the default of the small tasks, on purpose
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run; its config was compared before
    ".*your dataloader is not resumable.*",  # the data module is, see DataModule.state_dict
    ".*callbacks used to create the checkpoint need to be provided.*",  # EMA may be switched off, see Harness
    ".*smaller than the logging interval.*",  # in a resumed run with few steps, see make_trainer
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning against a newer torch
)


def begin_process(seed: int) -> None:
    """Seed this process, mute all ranks but 0, and filter irrelevant warnings."""
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    console.quiet = not is_first()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    lightning.seed_everything(seed, workers=True, verbose=False)


def make_trainer(run: Run, folder: Path, *, with_loggers: bool = True) -> lightning.Trainer:
    """Make Lightning's trainer from the node ``trainer`` and the settings of the harness."""
    node = run.settings.trainer
    arguments = node.model_dump()
    accumulated = node.accumulate_grad_batches
    interval = min(node.val_check_interval or node.max_steps, node.max_steps)
    if node.val_check_interval is None:
        arguments["limit_val_batches"] = 0
    # The training stream is one long epoch (see xlm.core.data.order); Lightning counts batches, we steps.
    arguments["val_check_interval"] = interval * accumulated
    arguments["log_every_n_steps"] = min(
        node.log_every_n_steps, node.max_steps
    )  # so that a short run has a curve too
    check_trainer_arguments(arguments)
    check_device(node.accelerator, node.precision)
    for key, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:  # a strategy, a profiler
            arguments[key] = make(cast("dict[str, Any]", value), f"trainer.{key}")
    plugins: list[Any] = [AtomicCheckpointIO()]
    if node.precision in ("bf16-true", "16-true"):
        plugins.append(HalfWeights(arguments.pop("precision")))
    callbacks = _make_of_class(run.settings.callbacks, "callbacks", Callback)
    loggers = _make_of_class(run.settings.logger, "logger", Logger) if with_loggers else []
    try:
        trainer = lightning.Trainer(
            **arguments,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=folder,
            plugins=plugins,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise XLMError(f"trainer: Lightning rejects these settings. {error}") from error
    if trainer.strategy.root_device.type == "cpu" and (note := note_on_precision(node.precision)):
        say(note)
    if isinstance(trainer.strategy, DeepSpeedStrategy) and accumulated > 1:
        raise XLMError(
            f"trainer.accumulate_grad_batches: got {accumulated}. DeepSpeed adds up inside its engine, where "
            "micro-batches cannot be weighted by their tokens: set it to 1"
        )
    return trainer


T = TypeVar("T")


def _make_of_class(nodes: Mapping[str, Mapping[str, Any] | None], key: str, kind: type[T]) -> list[T]:
    """Make every object below ``key``.

    Raises:
        XLMError: If one is not of the class.
    """
    for name, found in (made := make_all(nodes, key)).items():
        if not isinstance(found, kind):
            target = (nodes[name] or {})["_target_"]
            raise XLMError(
                f"{key}.{name}: {target} made {type(found).__name__}, not a Lightning {kind.__name__}. "
                f"To switch it off: {key}.{name}=null"
            )
    return list(made.values())


@contextmanager
def lightning_explained() -> Generator[None]:
    """Name the trainer's settings if Lightning rejects them during the run.

    Raises:
        XLMError: If it cannot be made; states the reason.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise XLMError(
            f"trainer: Lightning rejects these settings. {' '.join(str(error).split())}"
        ) from error


def evaluate_test_split(
    trainer: lightning.Trainer,
    harness: Harness,
    datamodule: DataModule,
    folder: Path,
    *,
    num_traces: int,
    progress: Progress | None = None,
) -> PredictionWriter:
    """Run every test loader; generated texts and likelihoods of rows go to files in ``folder``.

    Args:
        trainer: Lightning's trainer.
        harness: The network and how it is evaluated.
        datamodule: The data.
        folder: Folder of the files.
        num_traces: Generations of each loader that are kept step by step.
        progress: State of an evaluation that continues or can be continued; None for none.

    Returns:
        The writer of the files, with the traces.
    """
    writer = PredictionWriter(
        folder,
        num_traces=num_traces,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    harness.results = {}
    harness.progress = progress
    kept = progress.kept() if progress is not None else nullcontext()
    with kept, harness.evaluation.texts.writing(writer), lightning_explained():
        trainer.test(harness, datamodule, verbose=False)
    harness.progress = None
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        writer.merge()
    return writer


def record_means(trainer: lightning.Trainer, folder: Path) -> None:
    """Record the device and processes of the job, beside the versions."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if trainer.is_global_zero:
        run_record.add(
            folder,
            device=f"{device} ({name})",
            processes=trainer.world_size,
            threads=torch.get_num_threads(),
            system=platform.platform(),
        )
