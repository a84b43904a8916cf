"""From a resolved run to objects: the slots, the data, the harness with both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlm.core.config.build import make, make_all
from xlm.core.config.checks import check_methods
from xlm.core.config.machine import blamed_on
from xlm.core.config.schema import SamplerLikelihoodSettings, Stage
from xlm.core.data import DataModule, PreparedTask, Stream, TaskParts, open_stream, prepare
from xlm.core.evaluation import report
from xlm.core.evaluation.slots import Slots
from xlm.core.evaluation.uses import needs_examples
from xlm.core.protocols import Collator
from xlm.core.training.harness import Harness
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_optimizer


def assemble(run: Run, *, tests_only: bool = False) -> tuple[Harness, DataModule]:
    """Make slots and collators, then the data.

    Args:
        run: The run.
        tests_only: Whether only the test loaders will be read.
    """
    settings = run.settings
    parts = make_parts(run)
    # Before the data, whose preparation may take hours: a wrong argument of a slot ends the run at once.
    slots = make_slots(run)
    if not tests_only:
        check_optimizer(slots, num_steps=settings.trainer.max_steps)
    collators = make_collators(run)
    prepared = make_prepared(run, parts, tests_only=tests_only)
    if not prepared.was_cached:
        report.print_prepared(prepared)
    datamodule = make_datamodule(run, parts, prepared, collators)
    harness = Harness(slots, loaders=datamodule.loaders, seed=settings.seed, compile_network=settings.compile)
    return harness, datamodule


def make_slots(run: Run) -> Slots:
    """Make every slot of the harness."""
    settings = run.settings
    slots = Slots(
        tokenizer=run.tokenizer,
        model=make(settings.model, "model"),
        loss=make(settings.loss, "loss"),
        predictor=make(settings.predictor, "predictor"),
        optimizer=make(settings.optimizer, "optimizer"),
        lr_scheduler=make(settings.lr_scheduler, "lr_scheduler"),
        loss_metrics=make_all(settings.loss_metrics, "loss_metrics"),
        generation_metrics=make_all(settings.task.metrics, "task.metrics"),
        sampler_likelihood=settings.sampler_likelihood or SamplerLikelihoodSettings(),
        trace="full" if settings.show_probabilities else True,
    )
    for key, metrics in {
        "loss_metrics": slots.loss_metrics,
        "task.metrics": slots.generation_metrics,
    }.items():
        for name, metric in metrics.items():
            check_methods(metric, f"{key}.{name}", "Metric", ("sums", "reset", "update", "compute"))
    return slots


def make_parts(run: Run) -> TaskParts:
    """Make the data slots of the task."""
    task = run.settings.task
    return TaskParts(
        source=make(task.source, "task.source"),
        row_filter=make(task.filter, "task.filter") if task.filter is not None else None,
        preprocess=make(task.preprocess, "task.preprocess"),
        tokenizer=run.tokenizer,
    )


def make_collators(run: Run) -> Mapping[Stage, Mapping[str, Collator[Any]]]:
    """Make the collator of each loader, by stage and name."""
    return {
        stage: {
            name: make(loader.collator, f"datamodule.{stage}.{name}.collator")
            for name, loader in named.items()
        }
        for stage, named in run.settings.datamodule.loaders.items()
    }


def make_prepared(run: Run, parts: TaskParts, *, tests_only: bool = False) -> PreparedTask:
    """Find the task's rows in the cache, or prepare them.

    Args:
        run: The run.
        parts: The slots of its task.
        tests_only: Whether only the data of the test loaders must be intact.
    """
    data = run.settings.datamodule
    cache_dir = Path(data.cache_dir)
    with blamed_on("datamodule.cache_dir", cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    return prepare(
        run.settings.task,
        parts,
        cache_dir=cache_dir,
        num_proc=data.num_proc,
        used={loader.split for loader in data.test.values()} if tests_only else None,
    )


def make_datamodule(
    run: Run,
    parts: TaskParts,
    prepared: PreparedTask,
    collators: Mapping[Stage, Mapping[str, Collator[Any]]],
) -> DataModule:
    """Make the data module."""
    settings = run.settings
    loaders = settings.datamodule.loaders

    def stream(**arguments: Any) -> Stream:
        rows = open_stream(
            settings.task,
            parts,
            max_rows=arguments["settings"].max_rows,
            buffer_size=settings.datamodule.shuffle_buffer,
            seed=settings.seed,
            rank=arguments["rank"],
            world_size=arguments["world_size"],
        )
        return Stream(rows=rows, encoder=parts.encoder(settings.task), seed=settings.seed, **arguments)

    return DataModule(
        prepared=prepared,
        loaders=loaders,
        collators=collators,
        seed=settings.seed,
        num_batches=settings.trainer.max_steps * settings.trainer.accumulate_grad_batches,
        open_stream=stream if settings.task.streaming else None,
        with_examples={
            stage: [name for name, loader in named.items() if needs_examples(loader.uses)]
            for stage, named in loaders.items()
        },
    )
