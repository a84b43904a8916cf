"""The jobs. Each gets a validated config, makes what it needs, runs it, and leaves its results as files."""

import logging
import platform
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DeepSpeedStrategy
from omegaconf import DictConfig, OmegaConf

from xlm.core.config.build import make, make_all
from xlm.core.config.console import console, say
from xlm.core.config.differences import flatten
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import JobType, RunSettings
from xlm.core.config.secrets import hide
from xlm.core.data import DataModule
from xlm.core.evaluation import report
from xlm.core.evaluation.predictions import PredictionWriter
from xlm.core.hub import source
from xlm.core.hub.export import export
from xlm.core.hub.push import push_to_hub
from xlm.core.hub.repository import one_line
from xlm.core.saving import run_record
from xlm.core.saving.checkpoints import AtomicCheckpointIO
from xlm.core.saving.processes import is_first
from xlm.core.saving.resume import Header
from xlm.core.saving.run_folder import RunFolder
from xlm.core.saving.weights import WeightOptions
from xlm.core.training.assembly import (
    make_datamodule,
    make_parts,
    make_prepared,
    make_slots,
    make_tokenizer,
)
from xlm.core.training.compiling import explain_compiler
from xlm.core.training.curves import draw_together
from xlm.core.training.fork import Fork
from xlm.core.training.harness import Harness
from xlm.core.training.interruption import InterruptedTrainingError, requeue
from xlm.core.training.lr_schedules import WarmupSchedule
from xlm.core.training.monitors import check_monitors, log_outcome
from xlm.core.training.precision import HalfWeights
from xlm.core.training.processor import describe_threads, note_on_precision
from xlm.core.training.slot_checks import check_optimizer, check_slots
from xlm.core.training.trainer_arguments import check_device, check_trainer_arguments

HARMLESS_WARNINGS = (
    ".*does not have many workers.*",  # the default of the small tasks, on purpose
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run; its config was compared before
    ".*your dataloader is not resumable.*",  # the data module is, see DataModule.state_dict
    ".*callbacks used to create the checkpoint need to be provided.*",  # EMA may be switched off, see Harness
    ".*smaller than the logging interval.*",  # of what is left of a resumed run, see make_trainer
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning against a newer torch
)


def run(config: DictConfig, settings: RunSettings) -> dict[str, float]:
    """Run the job that the config asks for.

    Returns:
        Its figures.
    """
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    console.quiet = not is_first()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    with explain_compiler(settings.model["_target_"]) if settings.compile else nullcontext():
        return JOBS[settings.job_type](config, settings)


def prepare_data(config: DictConfig, settings: RunSettings) -> dict[str, float]:
    """Prepare the task's rows and say what they are."""
    parts = make_parts(config, settings, make_tokenizer(config))
    report.print_prepared(make_prepared(settings, parts))
    return {}


def train(config: DictConfig, settings: RunSettings) -> dict[str, float]:
    """Train, resume if the run exists, and test the best checkpoint."""
    folder = RunFolder(Path(settings.output_dir, settings.job_name))
    with folder.writing():
        return _train(config, settings, folder)


def _train(config: DictConfig, settings: RunSettings, folder: RunFolder) -> dict[str, float]:
    record = container(config)
    if settings.from_run is not None and not folder.has_checkpoints():
        Fork(Path(settings.from_run), record, settings)  # says at once what is wrong with it
    folder.start_training(record)
    harness, datamodule = assemble(config, settings)
    found = folder.resumable(harness.misfit)
    resume, fork = found.header, None
    if resume is None and settings.from_run is not None:
        fork = harness.fork = Fork(Path(settings.from_run), record, settings)
        resume = fork.find(partial(harness.misfit, any_loss=True))
    report.print_start(
        "train",
        folder.path,
        {
            "task": settings.task.name,
            "parameters": f"{sum(p.numel() for p in harness.model.parameters()):,}",
            "steps": f"{settings.trainer.max_steps:,}",
            "threads": describe_threads(),
            **describe_warmup(harness.slots.lr_scheduler, settings.trainer.max_steps),
            **(describe_start(resume) if fork is None or resume is None else fork.describe(resume)),
        },
    )
    figures = check_slots(harness, datamodule)
    check_optimizer(harness.slots, num_steps=settings.trainer.max_steps)
    trainer = make_trainer(config, settings, folder.path)
    check_monitors(trainer, harness, figures)
    record_means(trainer, folder.path)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters(record))
    draw_together(trainer.loggers, figures)

    def keep_refused(trainer: lightning.Trainer, harness: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            folder.put_aside(found.refused)

    keep = LambdaCallback(on_train_start=keep_refused)
    cast("list[Callback]", trainer.callbacks).append(keep)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    if resume is None and settings.ckpt_path is not None:
        source.load(harness.model, settings.ckpt_path, **chosen_weights(settings))
    if resume is None or fork is not None or not resume.stopped_early:
        fit(trainer, harness, datamodule, resume)
        if counts := datamodule.stream_counts():
            report.print_streamed(counts)
    results = dict(harness.results)
    traces: Mapping[str, Any] = {}
    if settings.test_after_training:
        source.load(harness.model, str(folder.best_checkpoint()))
        writer = evaluate_test_split(trainer, harness, datamodule, folder.path, settings)
        results, traces = harness.results, writer.traces
    log_outcome(trainer, hyperparameters(record), results)
    if trainer.is_global_zero:
        report.write_metrics(folder.path / "metrics.json", results)
        traces_file = report.write_traces(folder.path / "traces.jsonl", traces)
        report.print_traces(traces)
        report.print_metrics(
            {name: value for name, value in results.items() if name.startswith("test/")} or results
        )
        report.print_files(
            {
                "config": folder.path / "config.yaml",
                "checkpoints": folder.checkpoints,
                "metrics": folder.path / "metrics.json",
                "predictions": folder.path / "predictions.jsonl",
                **traces_file,
                "curves": folder.path / "tensorboard",
                "curves (csv)": folder.path / "csv",
            }
        )
        report.print_kept(folder.kept_checkpoints())
        run_record.end(folder.path)
    return results


def describe_warmup(schedule: object, num_steps: int) -> dict[str, str]:
    """A line where the warm-up does not end within the training."""
    if not isinstance(schedule, WarmupSchedule) or (steps := schedule.warmup_steps(num_steps)) < num_steps:
        return {}
    return {
        "warm-up": f"{steps:,} steps, so optimizer.lr is never reached; a fraction fits any training: "
        "lr_scheduler.warmup=0.02"
    }


def describe_start(resume: Header | None) -> dict[str, str]:
    """What a training begins with, for its first lines."""
    if resume is None:
        return {"starting": "from new weights"}
    if resume.stopped_early:
        return {"finished": f"stopped early at step {resume.step}: {resume.path}"}
    return {"resuming": f"at step {resume.step}: {resume.path}"}


def fit(trainer: lightning.Trainer, harness: Harness, datamodule: DataModule, resume: Header | None) -> None:
    """Train to the end, or until a signal stops it; SLURM's notice of the time limit requeues the job."""
    try:
        with lightning_explained():
            trainer.fit(harness, datamodule, ckpt_path=resume.path if resume else None, weights_only=True)
    except InterruptedTrainingError as interrupted:
        if trainer.is_global_zero and (told := requeue(interrupted.signum)):
            say(told)
        raise


def evaluate(config: DictConfig, settings: RunSettings) -> dict[str, float]:
    """Score a checkpoint on the test split, or write its generations."""
    run_folder = RunFolder(Path(settings.output_dir, settings.job_name))
    checkpoint = str(run_folder.best_checkpoint()) if settings.ckpt_path is None else settings.ckpt_path
    if settings.job_type == "generate":
        only = {"datamodule": settings.datamodule.only(GENERATION)}
        settings = settings.model_copy(update=only)
    harness, datamodule = assemble(config, settings)
    source.load(harness.model, checkpoint, **chosen_weights(settings))
    check_slots(harness, datamodule, stages=("test",))
    folder = run_folder.start_job(settings.job_type, container(config))
    report.print_start(settings.job_type, folder, {"task": settings.task.name, "checkpoint": checkpoint})
    trainer = make_trainer(config, settings, folder, with_loggers=False)
    record_means(trainer, folder)
    writer = evaluate_test_split(trainer, harness, datamodule, folder, settings)
    if trainer.is_global_zero:
        report.write_metrics(folder / "metrics.json", harness.results)
        traces_file = report.write_traces(folder / "traces.jsonl", writer.traces)
        report.print_traces(writer.traces)
        report.print_metrics(harness.results)
        files = {"metrics": folder / "metrics.json", "predictions": folder / "predictions.jsonl"}
        report.print_files({**files, **traces_file})
        run_record.end(folder)
    return harness.results


JOBS: dict[JobType, Callable[[DictConfig, RunSettings], dict[str, float]]] = {
    "prepare_data": prepare_data,
    "train": train,
    "eval": evaluate,
    "generate": evaluate,
    "export": export,
    "push_to_hub": push_to_hub,
}


def assemble(config: DictConfig, settings: RunSettings) -> tuple[Harness, DataModule]:
    """Make tokenizer, data and slots, in this order."""
    tokenizer = make_tokenizer(config)
    parts = make_parts(config, settings, tokenizer)
    prepared = make_prepared(settings, parts)
    if not prepared.was_cached:
        report.print_prepared(prepared)
    slots = make_slots(config, tokenizer)
    datamodule = make_datamodule(config, settings, parts, prepared)
    harness = Harness(slots, loaders=datamodule.loaders, seed=settings.seed, compile_network=settings.compile)
    return harness, datamodule


def make_trainer(
    config: DictConfig, settings: RunSettings, folder: Path, *, with_loggers: bool = True
) -> lightning.Trainer:
    """Make Lightning's trainer from the node ``trainer`` and what the harness decides itself."""
    node = settings.trainer
    arguments = cast("dict[str, Any]", OmegaConf.to_container(config.trainer, resolve=True))
    accumulated = node.accumulate_grad_batches
    interval = min(node.val_check_interval or node.max_steps, node.max_steps)
    if node.val_check_interval is None:
        arguments["limit_val_batches"] = 0
    # The training stream is one long epoch (see xlm.core.data.order); Lightning counts batches, we steps.
    arguments["val_check_interval"] = interval * accumulated
    arguments["log_every_n_steps"] = min(
        node.log_every_n_steps, node.max_steps
    )  # a short run has a curve too
    check_trainer_arguments(arguments)
    check_device(node.accelerator, node.precision)
    for key, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:  # a strategy, a profiler
            arguments[key] = make(config, f"trainer.{key}")
    plugins: list[Any] = [AtomicCheckpointIO()]
    if node.precision in ("bf16-true", "16-true"):
        plugins.append(HalfWeights(arguments.pop("precision")))
    callbacks = make_of_class(config, "callbacks", Callback)
    loggers = make_of_class(config, "logger", Logger) if with_loggers else []
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
        raise XLMError(f"trainer: Lightning refuses these settings. {error}") from error
    if trainer.strategy.root_device.type == "cpu" and (note := note_on_precision(node.precision)):
        say(note)
    if isinstance(trainer.strategy, DeepSpeedStrategy) and accumulated > 1:
        raise XLMError(
            f"trainer.accumulate_grad_batches: got {accumulated}. DeepSpeed adds up inside its engine, where "
            "micro-batches cannot be weighed by their tokens: set it to 1"
        )
    return trainer


T = TypeVar("T")


def make_of_class(config: DictConfig, key: str, kind: type[T]) -> list[T]:
    """Make every object below ``key``.

    Raises:
        XLMError: When one is not of the class.
    """
    made = make_all(config, key)
    for name, found in made.items():
        if not isinstance(found, kind):
            target = OmegaConf.select(config, f"{key}.{name}._target_")
            raise XLMError(
                f"{key}.{name}: {target} made {type(found).__name__}, not a Lightning {kind.__name__}. "
                f"To leave it out: {key}.{name}=null"
            )
    return list(made.values())


@contextmanager
def lightning_explained() -> Generator[None]:
    """Name the trainer's settings where Lightning refuses them only once it runs.

    Raises:
        XLMError: With its reason.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise XLMError(f"trainer: Lightning refuses these settings. {one_line(error)}") from error


def evaluate_test_split(
    trainer: lightning.Trainer,
    harness: Harness,
    datamodule: DataModule,
    folder: Path,
    settings: RunSettings,
) -> PredictionWriter:
    """Run every test loader; generated texts go to ``predictions.jsonl`` in ``folder``."""
    writer = PredictionWriter(
        folder / "predictions.jsonl",
        num_traces=settings.show_generations,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    harness.results = {}
    with harness.evaluation.texts.writing(writer), lightning_explained():
        trainer.test(harness, datamodule, verbose=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        writer.merge()
    return writer


def record_means(trainer: lightning.Trainer, folder: Path) -> None:
    """Record what the job runs on, beside the versions."""
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


def hyperparameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config's own values for the loggers, by dotted key; references only repeat others."""
    return {
        key: value
        for key, value in flatten(record)
        if value is not None and not (isinstance(value, str) and "${" in value)
    }


def chosen_weights(settings: RunSettings) -> WeightOptions:
    """Which weights of ``ckpt_path`` the config asks for."""
    return {"which": settings.weights, "allow_pickle": settings.allow_pickle}


def container(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values without secrets; references stay what they are."""
    return hide(OmegaConf.to_container(config, resolve=False))
