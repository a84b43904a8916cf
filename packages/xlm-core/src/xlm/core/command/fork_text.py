"""``job_type=generate fork=TRACE@STEP``: continue a recorded text from one of its steps."""

from dataclasses import replace
from typing import cast

from xlm.core.command.evaluate import load
from xlm.core.command.jobs import ForkEdit
from xlm.core.command.results import write_pages
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.config.run_files import PREDICTIONS, TRACES
from xlm.core.evaluation import report
from xlm.core.evaluation.text_fork import TextFork, read_recorded, token_id
from xlm.core.evaluation.uses import Use
from xlm.core.saving import run_record
from xlm.core.saving.run_folder import RunFolder
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_slots
from xlm.core.training.trainer import evaluate_test_split, make_trainer, record_means


def fork_text(run: Run, place: str, edit: ForkEdit | None) -> dict[str, float]:
    """Generate the text again, with an edit behind the step if there is one.

    Args:
        run: The run that wrote the text.
        place: ``TRACE@STEP``, see :func:`xlm.core.evaluation.text_fork.read_recorded`.
        edit: The edit; None for none.

    Raises:
        XLMError: If the record does not fit the run, or the predictor refuses the edit.
    """
    recorded = read_recorded(place)
    name = recorded.loader.removeprefix("test/")
    loader = run.settings.datamodule.only(GENERATION).test.get(name)
    if loader is None:
        raise XLMError(f"fork: {recorded.where} is of the loader {recorded.loader}, which this config lacks")
    written = None if edit is None else (edit.position, token_id(edit.token, run.tokenizer))
    data = run.settings.datamodule.model_copy(update={"test": {name: loader}})
    run = replace(run, settings=run.settings.model_copy(update={"datamodule": data}))
    harness, datamodule, checkpoint = load(run)
    check_slots(harness, datamodule, stages=("test",))
    texts = harness.evaluation.texts
    use = cast("Use", TextFork(harness.slots, recorded, written, texts))  # made here, not by its name
    harness.evaluation.uses["test"] = {name: [use]}
    folder = RunFolder(run.folder).start_job(run.settings.job_type, run.record)
    report.print_start(
        run.settings.job_type,
        folder,
        {"fork": f"{recorded.where}, step {recorded.step}", "checkpoint": checkpoint},
    )
    trainer = make_trainer(run, folder, with_loggers=False)
    if trainer.world_size > 1:
        raise XLMError("trainer.devices: a text is continued in one process. Set trainer.devices=1")
    record_means(trainer, folder)
    writer = evaluate_test_split(trainer, harness, datamodule, folder, num_traces=1)
    if not writer.traces:
        raise XLMError(f"fork: {recorded.where} is of row {recorded.row}, which {recorded.loader} lacks")
    traces_file = report.write_traces(folder / TRACES, writer.traces)
    report.print_traces(writer.traces)
    pages = write_pages(folder) if run.settings.trace else {}
    report.print_files({"predictions": folder / PREDICTIONS, **traces_file, **pages})
    run_record.end(folder)
    return {}
