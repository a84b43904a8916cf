"""The jobs ``eval`` and ``generate``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xlm.core.command.results import Results, write_pages, write_results
from xlm.core.config.console import say
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.run_files import LIKELIHOODS, METRICS, PREDICTIONS, TRACES
from xlm.core.data import DataModule
from xlm.core.evaluation import report
from xlm.core.evaluation.progress import Progress, is_interrupted
from xlm.core.hub import source
from xlm.core.saving import run_record
from xlm.core.saving.run_folder import RunFolder, differences, is_first, write_record
from xlm.core.saving.versions import is_unfinished
from xlm.core.saving.weights import fingerprint
from xlm.core.training.assembly import assemble
from xlm.core.training.harness import Harness
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_slots
from xlm.core.training.trainer import evaluate_test_split, make_trainer, record_means


def generate(run: Run) -> dict[str, float]:
    """Write the generations of a checkpoint: an evaluation with the use ``generation`` alone."""
    only = {"datamodule": run.settings.datamodule.only(GENERATION)}
    return evaluate(replace(run, settings=run.settings.model_copy(update=only)))


def evaluate(run: Run) -> dict[str, float]:
    """Run every test loader on a checkpoint."""
    settings = run.settings
    harness, datamodule, checkpoint = load(run)
    check_slots(harness, datamodule, stages=("test",))
    weights = fingerprint(harness.model)
    folder = start_or_continue(run, lambda folder: is_interrupted(folder, weights))
    report.print_start(settings.job_type, folder, {"task": settings.task.name, "checkpoint": checkpoint})
    return evaluate_into(folder, run, harness, datamodule, checkpoint, weights)


def start_or_continue(run: Run, can_continue: Callable[[Path], bool]) -> Path:
    """Begin the job in a new folder, or in its last one if that was interrupted with this config.

    Args:
        run: The run with the type of its job.
        can_continue: Whether there is something in a folder to continue from.
    """
    run_folder, job_type = RunFolder(run.folder), run.settings.job_type
    # Rank 0 decides for all, who receive its folder when they begin to write.
    for folder in sorted(run_folder.jobs(job_type), reverse=True) if is_first() else ():
        if is_unfinished(folder) and can_continue(folder):
            recorded = RunFolder(folder).read_config()
            if not list(differences(recorded, run.record, ignored=())):
                say(f"{folder} was interrupted and continues")
                write_record(folder, run.record)
                return folder
    return run_folder.start_job(job_type, run.record)


def load(run: Run) -> tuple[Harness, DataModule, str]:
    """Assemble a run for its test loaders, with the weights of its checkpoint, which is returned too."""
    settings = run.settings
    checkpoint = checkpoint_of(run)
    harness, datamodule = assemble(run, tests_only=True)
    source.load(
        harness.model,
        checkpoint,
        which=settings.weights,
        allow_pickle=settings.allow_pickle,
        network=harness.origin["network"],
    )
    return harness, datamodule, checkpoint


def checkpoint_of(run: Run) -> str:
    """The checkpoint of ``ckpt_path``, else the best of the run."""
    path = run.settings.ckpt_path
    return str(RunFolder(run.folder).best_checkpoint()) if path is None else path


def evaluate_into(
    folder: Path, run: Run, harness: Harness, datamodule: DataModule, checkpoint: str, weights: str
) -> dict[str, float]:
    """Run the test loaders and write all results.

    Args:
        folder: The started folder of the job.
        run: Its settings.
        harness: The network with the weights of the checkpoint.
        datamodule: The data.
        checkpoint: Path or URL of the weights.
        weights: Their fingerprint.
    """
    settings = run.settings
    trainer = make_trainer(run, folder, with_loggers=False)
    record_means(trainer, folder)
    progress = Progress(folder, weights, rank=trainer.global_rank, world_size=trainer.world_size)
    writer = evaluate_test_split(
        trainer, harness, datamodule, folder, num_traces=settings.show_generations, progress=progress
    )
    if trainer.is_global_zero:
        report.write_metrics(folder / METRICS, harness.results)
        traces_file = report.write_traces(folder / TRACES, writer.traces)
        pages = write_pages(folder) if settings.trace and traces_file else {}
        report.print_traces(writer.traces)
        report.print_metrics(harness.results)
        about = source.about(checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)
        results = Results(run, folder, harness.results, datamodule, checkpoint, about)
        report.print_files(
            {
                "metrics": folder / METRICS,
                "predictions": folder / PREDICTIONS,
                "likelihoods": folder / LIKELIHOODS,
                **traces_file,
                **pages,
                **write_results(results),
            }
        )
        run_record.end(folder)
    return harness.results
