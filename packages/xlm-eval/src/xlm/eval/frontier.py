"""The job ``frontier``: one checkpoint at every setting of a grid of its sampler.

The data are loaded and the network is made once. The seeds of the rows do not depend on the setting, so the
settings are compared on the same rows with the same noise. Each setting has a folder with the files of an
evaluation, and is skipped if it is finished.
"""

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from xlm.core.command.compose import refers_to
from xlm.core.command.evaluate import checkpoint_of, evaluate_into, load
from xlm.core.config.build import make
from xlm.core.config.console import console, say
from xlm.core.config.errors import XLMError
from xlm.core.config.run_files import METRICS
from xlm.core.config.schema import SamplerLikelihoodSettings
from xlm.core.config.texts import read_json
from xlm.core.config.validation import validated
from xlm.core.data import DataModule
from xlm.core.evaluation import report
from xlm.core.evaluation.evaluation import Evaluation
from xlm.core.evaluation.slots import Slots
from xlm.core.saving.run_folder import write_record
from xlm.core.saving.versions import is_unfinished
from xlm.core.saving.weights import fingerprint
from xlm.core.training.harness import Harness
from xlm.core.training.run import Run
from xlm.core.training.slot_checks import check_slots
from xlm.eval.sweep import USES, Point, Sweep, nodes, point_name, points, with_values

FOLDER = "frontier"
SAME_AS_NFE = ("calls_per_sequence", "states_per_sequence", "tokens_per_evaluation")
"""Metrics that are left to the files."""
NUMBER = len("0.001234")
"""Letters of a number in the table."""
IRRELEVANT = ("sweep", "logger", "callbacks", "hub", "show_generations", "trace", "job_type", "hydra")
"""Keys that change no result: points of two grids that differ in them only share a folder."""


def evaluate_grid(run: Run, sweep: Sweep) -> dict[str, float]:
    """Evaluate every setting that is not finished.

    Returns:
        The metrics of all settings, as ``SETTING/LOADER/METRIC``.

    Raises:
        XLMError: If a sampler cannot be made with a setting, before the first one is evaluated.
    """
    _check_references(run.record, sweep)
    grid = {point_name(point): _at(run, point) for point in points(sweep)}
    predictors = {name: make(each.settings.predictor, "predictor") for name, each in grid.items()}
    [first, *_] = grid.values()
    harness, datamodule, checkpoint = load(first)
    samplers = {
        name: _sampler(grid[name], predictor, harness, datamodule) for name, predictor in predictors.items()
    }
    weights = fingerprint(harness.model)
    root = run.folder / FOLDER / _digest(run, checkpoint, weights)
    start = {"task": run.settings.task.name, "checkpoint": checkpoint, "settings": str(len(grid))}
    report.print_start(FOLDER, root, start)
    found: dict[str, Mapping[str, float]] = {}
    for number, (name, at_point) in enumerate(grid.items(), start=1):
        folder = root / name
        if (folder / METRICS).is_file() and not is_unfinished(folder):
            say(f"  {number} of {len(grid)}  {name}: finished before")
            found[name] = cast("dict[str, float]", read_json(folder / METRICS, str(folder / METRICS)))
            continue
        harness.slots, harness.evaluation = samplers[name]
        started = time.perf_counter()
        write_record(folder, at_point.record)
        with _quiet():
            found[name] = evaluate_into(folder, at_point, harness, datamodule, checkpoint, weights)
        say(f"  {number} of {len(grid)}  {name}: {time.perf_counter() - started:.1f} s")
    _print_summary(found, root)
    return {f"{name}/{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}


def _check_references(record: Mapping[str, Any], sweep: Sweep) -> None:
    """Reject a key that another refers to, or that is part of a reference: only one of them would vary."""
    for key in sweep:
        parts = key.split(".")
        node: Any = record
        for depth, part in enumerate(parts):
            node = node.get(part) if isinstance(node, Mapping) else None
            above = ".".join(parts[: depth + 1])
            if refers_to(f"{above}}}", record) or (isinstance(node, str) and "${" in node):
                raise XLMError(
                    f"sweep: {above} is part of a reference (${{...}}) in the config, so {key} cannot "
                    "vary alone"
                )


def _at(run: Run, point: Point) -> Run:
    """The run with the values of a point, in one process, with the uses that depend on the sampler."""
    settings = run.settings
    node = with_values(nodes(settings), point)
    update = {
        "predictor": node["predictor"],
        "sampler_likelihood": validated(SamplerLikelihoodSettings, node["sampler_likelihood"]),
        "datamodule": settings.datamodule.only(*USES),
        "trainer": settings.trainer.model_copy(update={"devices": 1}),
        "show_generations": 0,
        "trace": False,
    }
    record = {key: value for key, value in run.record.items() if key != "sweep"}
    return replace(
        run,
        settings=settings.model_copy(update=update),
        record=with_values(record, {**point, "ckpt_path": checkpoint_of(run)}),
    )


def _sampler(
    at_point: Run, predictor: Any, harness: Harness, datamodule: DataModule
) -> tuple[Slots, Evaluation]:
    """The slots of a point around the network of the harness, checked on the first rows."""
    options = at_point.settings.sampler_likelihood or SamplerLikelihoodSettings()
    slots = replace(harness.slots, predictor=predictor, sampler_likelihood=options)
    harness.slots, harness.evaluation = slots, Evaluation(slots, datamodule.loaders)
    check_slots(harness, datamodule, stages=("test",))
    return slots, harness.evaluation


def _digest(run: Run, checkpoint: str, weights: str) -> str:
    """Name of the folder of all points of one checkpoint with its weights, data and config."""
    record = {key: value for key, value in run.record.items() if key not in IRRELEVANT}
    text = json.dumps({**record, "ckpt_path": checkpoint, "weights": weights}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextmanager
def _quiet() -> Generator[None]:
    """Print nothing of an evaluation, whose results are in its files."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def _print_summary(found: Mapping[str, Mapping[str, float]], root: Path) -> None:
    """Print the metrics in which the settings differ, and the command that compares them."""
    names = dict.fromkeys(name for metrics in found.values() for name in metrics)
    values = {name: [metrics.get(name) for metrics in found.values()] for name in names}
    varying = {
        name: name.rpartition("/")[2].replace("_", " ")
        for name in names
        if name.rpartition("/")[2] not in SAME_AS_NFE and (len(set(values[name])) > 1 or len(found) == 1)
    }
    shown = list(_fitting(varying, console.width - min(max(map(len, found)), console.width // 2) - 4))
    table = Table(title="settings", title_justify="left")
    table.add_column("", overflow="fold")
    for name in shown:
        table.add_column(varying[name].replace(" ", "\n"), justify="right")
    for name, metrics in found.items():
        table.add_row(name, *(f"{metrics[metric]:.4g}" if metric in metrics else "–" for metric in shown))
    console.print(table, soft_wrap=False)
    if more := [varying[name] for name in varying if name not in shown]:
        say(f"  {METRICS} of each setting also has {', '.join(more)}")
    say(f"\ncompare them:  xlm job_type=compare 'runs=[{root}/*]'")


def _fitting(heads: Mapping[str, str], width: int) -> Iterator[str]:
    """The first columns whose heads, broken between words, and numbers fit into a width."""
    for name, head in heads.items():
        width -= max(NUMBER, *map(len, head.split())) + len(" │ ")
        if width < 0:
            return
        yield name
