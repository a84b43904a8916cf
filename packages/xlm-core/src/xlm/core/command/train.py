"""The job ``train``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback, LambdaCallback

from xlm.core.command.results import Results, write_pages, write_results
from xlm.core.config.console import say
from xlm.core.config.differences import flatten
from xlm.core.config.run_files import CONFIG, CSV, LIKELIHOODS, METRICS, PREDICTIONS, TENSORBOARD, TRACES
from xlm.core.data import DataModule
from xlm.core.evaluation import report
from xlm.core.hub import source
from xlm.core.saving import run_record
from xlm.core.saving.resume import Header
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.assembly import assemble
from xlm.core.training.fork import Fork
from xlm.core.training.harness import Harness
from xlm.core.training.interruption import InterruptedTrainingError, requeue
from xlm.core.training.logged_texts import log_pages
from xlm.core.training.lr_schedules import WarmupSchedule
from xlm.core.training.monitors import check_monitors, draw_together, log_outcome
from xlm.core.training.processor import describe_threads
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_slots
from xlm.core.training.trainer import (
    evaluate_test_split,
    lightning_explained,
    make_trainer,
    record_means,
)


def train(run: Run) -> dict[str, float]:
    """Train, resume if the run exists, and test the best checkpoint."""
    folder = RunFolder(run.folder)
    with folder.writing():
        return _train(run, folder)


def _train(run: Run, folder: RunFolder) -> dict[str, float]:
    settings = run.settings
    if settings.from_run is not None and not folder.has_checkpoints():
        Fork(Path(settings.from_run), run)  # raises early if it is wrong
    folder.start_training(run.record)
    trainer = make_trainer(run, folder.path)  # before the data too, see `assemble`
    harness, datamodule = assemble(run)
    found = folder.resumable(harness.misfit)
    resume, fork = found.header, None
    if resume is None and settings.from_run is not None:
        fork = harness.fork = Fork(Path(settings.from_run), run)
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
    logged = check_slots(harness, datamodule)
    check_monitors(trainer, harness, logged)
    record_means(trainer, folder.path)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters(run.record))
    draw_together(trainer.loggers, logged)

    def keep_refused(trainer: lightning.Trainer, harness: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            folder.put_aside(found.refused)

    keep = LambdaCallback(on_train_start=keep_refused)
    cast("list[Callback]", trainer.callbacks).append(keep)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    if resume is None and settings.ckpt_path is not None:
        source.load(
            harness.model, settings.ckpt_path, which=settings.weights, allow_pickle=settings.allow_pickle
        )
    if resume is None or fork is not None or not resume.stopped_early:
        fit(trainer, harness, datamodule, resume)
        if counts := datamodule.stream_counts():
            report.print_streamed(counts)
    results = dict(harness.results)
    traces: Mapping[str, Any] = {}
    best = str(folder.best_checkpoint()) if settings.test_after_training else None
    if best is not None:
        source.load(harness.model, best)
        writer = evaluate_test_split(
            trainer, harness, datamodule, folder.path, num_traces=settings.show_generations
        )
        results, traces = harness.results, writer.traces
    log_outcome(trainer, hyperparameters(run.record), results)
    if trainer.is_global_zero:
        report.write_metrics(folder.path / METRICS, results)
        traces_file = report.write_traces(folder.path / TRACES, traces)
        pages = write_pages(folder.path) if settings.trace and traces_file else {}
        log_pages(trainer.loggers, pages)
        report.print_traces(traces)
        report.print_metrics(
            {name: value for name, value in results.items() if name.startswith("test/")} or results
        )
        written: dict[str, Path] = {}
        if best is not None:
            about = source.about(best)
            written = write_results(Results(run, folder.path, results, datamodule, best, about))
        report.print_files(
            {
                "config": folder.path / CONFIG,
                "checkpoints": folder.checkpoints,
                "metrics": folder.path / METRICS,
                "predictions": folder.path / PREDICTIONS,
                "likelihoods": folder.path / LIKELIHOODS,
                **traces_file,
                **pages,
                **written,
                "curves": folder.path / TENSORBOARD,
                "curves (csv)": folder.path / CSV,
            }
        )
        report.print_kept(folder.kept_checkpoints())
        run_record.end(folder.path)
    return results


def describe_warmup(schedule: object, num_steps: int) -> dict[str, str]:
    """A warning if the warm-up exceeds the training."""
    if not isinstance(schedule, WarmupSchedule) or (steps := schedule.warmup_steps(num_steps)) < num_steps:
        return {}
    return {
        "warm-up": f"{steps:,} steps, so optimizer.lr is never reached; a fraction fits any training: "
        "lr_scheduler.warmup=0.02"
    }


def describe_start(resume: Header | None) -> dict[str, str]:
    """The start of a training, for its first lines."""
    if resume is None:
        return {"starting": "from new weights"}
    if resume.stopped_early:
        return {"finished": f"stopped early at step {resume.step}: {resume.path}"}
    return {"resuming": f"at step {resume.step}: {resume.path}"}


def fit(trainer: lightning.Trainer, harness: Harness, datamodule: DataModule, resume: Header | None) -> None:
    """Train to the end or to a signal; SLURM's notice of the time limit requeues the job."""
    try:
        with lightning_explained():
            trainer.fit(harness, datamodule, ckpt_path=resume.path if resume else None, weights_only=True)
    except InterruptedTrainingError as interrupted:
        if trainer.is_global_zero and (notice := requeue(interrupted.signum)):
            say(notice)
        raise
    if trainer.is_global_zero:
        run_record.add(Path(trainer.default_root_dir), training=harness.totals)


def hyperparameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config's values for the loggers, by dotted key, without references."""
    return {
        key: value
        for key, value in flatten(record)
        if value is not None and not (isinstance(value, str) and "${" in value)
    }
