"""The jobs ``eval`` and ``generate``."""

from dataclasses import replace

from xlm.core.command.results import Results, write_results
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.run_files import LIKELIHOODS, METRICS, PREDICTIONS, TRACES
from xlm.core.evaluation import report
from xlm.core.hub import source
from xlm.core.saving import run_record
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.assembly import assemble
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_slots
from xlm.core.training.trainer import evaluate_test_split, make_trainer, record_means


def generate(run: Run) -> dict[str, float]:
    """Write the generations of a checkpoint: an evaluation with the use ``generation`` alone."""
    only = {"datamodule": run.settings.datamodule.only(GENERATION)}
    return evaluate(replace(run, settings=run.settings.model_copy(update=only)))


def evaluate(run: Run) -> dict[str, float]:
    """Run every test loader on a checkpoint."""
    settings, run_folder = run.settings, RunFolder(run.folder)
    checkpoint = str(run_folder.best_checkpoint()) if settings.ckpt_path is None else settings.ckpt_path
    harness, datamodule = assemble(run, tests_only=True)
    source.load(harness.model, checkpoint, which=settings.weights, allow_pickle=settings.allow_pickle)
    check_slots(harness, datamodule, stages=("test",))
    folder = run_folder.start_job(settings.job_type, run.record)
    report.print_start(settings.job_type, folder, {"task": settings.task.name, "checkpoint": checkpoint})
    trainer = make_trainer(run, folder, with_loggers=False)
    record_means(trainer, folder)
    writer = evaluate_test_split(trainer, harness, datamodule, folder, num_traces=settings.show_generations)
    if trainer.is_global_zero:
        report.write_metrics(folder / METRICS, harness.results)
        traces_file = report.write_traces(folder / TRACES, writer.traces)
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
                **write_results(results),
            }
        )
        run_record.end(folder)
    return harness.results
