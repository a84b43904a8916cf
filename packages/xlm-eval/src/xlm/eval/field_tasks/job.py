"""The job ``lm_eval``: tasks of the lm-evaluation-harness, as they are, on a checkpoint of a run."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from xlm.core.command.evaluate import checkpoint_of, start_or_continue
from xlm.core.config.console import console, say
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean
from xlm.core.config.run_files import METRICS
from xlm.core.evaluation import report
from xlm.core.evaluation.progress import writing
from xlm.core.hub import source
from xlm.core.saving import run_record
from xlm.core.saving.checkpoints import write_text_atomically
from xlm.core.saving.weights import fingerprint
from xlm.core.training.assembly import make_slots
from xlm.core.training.harness import class_name
from xlm.core.training.run import Run
from xlm.eval.collators import LIKELIHOOD
from xlm.eval.field_tasks.answers import Answers, has_answers
from xlm.eval.field_tasks.interface import language_model
from xlm.eval.field_tasks.scorer import Meaning, Scorer

if TYPE_CHECKING:
    from xlm.eval.jobs import LMEval

RESULTS = "results.json"
GENERATES = "generate_until"
"""The kind of task that is answered by a generated text; all others are by log-probabilities."""
GREEDY_METRICS = {"loglikelihood": "acc", "multiple_choice": "exact_match"}
"""The metric of a kind of task that depends on what greedy decoding writes."""


def evaluate_tasks(run: Run, job: "LMEval") -> dict[str, float]:
    """Score a checkpoint, and write the harness's results with what its log-probabilities are.

    Returns:
        The metrics, as ``lm_eval/TASK/METRIC``.

    Raises:
        XLMError: If a task is unknown, cannot be loaded, or requires what the family does not define.
    """
    max_length = job.max_length or run.settings.task.max_target_length
    if max_length is None:
        raise XLMError("max_length: missing, since task.max_target_length is null. Set max_length=NUMBER")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, loaded = _load(job)
    slots = make_slots(run)
    checkpoint = checkpoint_of(run)
    settings = run.settings
    source.load(
        slots.model,
        checkpoint,
        which=settings.weights,
        allow_pickle=settings.allow_pickle,
        network=class_name(slots.model),
    )
    weights = fingerprint(slots.model)
    scorer = Scorer.of(run, slots, job.context, max_length)
    kinds = {name: str(task.get_config("output_type")) for name, task in loaded.items()}
    for name, task in loaded.items():
        _check(name, task, kinds[name], scorer)
    folder = start_or_continue(run, lambda folder: has_answers(folder, weights))
    start = {"tasks": ", ".join(loaded), "checkpoint": checkpoint, "context": job.context}
    report.print_start("lm_eval", folder, start)
    with writing(folder):
        scorer.answers = Answers(folder, weights)
        found: dict[str, Any] = import_module("lm_eval.evaluator").simple_evaluate(
            model=language_model(scorer),
            tasks=job.tasks,
            task_manager=manager,
            num_fewshot=job.num_fewshot,
            limit=job.limit,
            gen_kwargs=job.gen_kwargs or None,
            bootstrap_iters=job.bootstrap_iters,
            log_samples=job.log_samples,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
        metrics = _report(folder, found, kinds, scorer)
        scorer.answers.remove()
    return metrics


def _load(job: "LMEval") -> tuple[Any, dict[str, Any]]:
    """The harness's list of tasks, and those of the job.

    Its own thousands of tasks are not listed if all that are asked for are in ``include_path``.
    """
    tasks: Any = import_module("lm_eval.tasks")
    own = (
        tasks.TaskManager(include_path=job.include_path, include_defaults=False) if job.include_path else None
    )
    if own is not None and not set(job.tasks) - set(own.all_tasks):
        manager = own
    else:
        manager = tasks.TaskManager(include_path=job.include_path)
    for name in job.tasks:
        if name not in manager.all_tasks:
            where = f" or in {job.include_path}" if job.include_path else ""
            raise XLMError(
                f"tasks: there is no {name} in the lm-evaluation-harness{where}."
                f"{did_you_mean(name, manager.all_tasks)}"
            )
    try:
        return manager, dict(manager.load(job.tasks)["tasks"])
    except Exception as error:  # a task is code, and its data are anywhere
        reason = " ".join(str(error).split())
        raise XLMError(
            f"tasks: {', '.join(job.tasks)} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def _check(name: str, task: Any, kind: str, scorer: Scorer) -> None:
    """Reject a task that requires what the family does not define."""
    try:
        scorer.collator(GENERATION if kind == GENERATES else LIKELIHOOD)
    except XLMError as error:
        raise XLMError(f"tasks: {name} asks for {kind}. {error}") from error
    metrics = [str(each["metric"]) for each in task.get_config("metric_list") or []]
    greedy = GREEDY_METRICS.get(kind)
    if greedy in metrics and not scorer.scores_prefixes:
        raise XLMError(
            f"tasks: {name} has the metric {greedy}, whether greedy decoding writes the answer token by "
            f"token; {type(scorer.slots.loss).__name__} does not define it, since it is for models from left "
            "to right. Copy the task's file into include_path without this metric"
        )
    if greedy and callable(task.get_config("process_results")) and not scorer.scores_prefixes:
        say(f"  {name} has code of its own for its metrics: no answer counts as the greedy one in it")


def _report(
    folder: Path, found: Mapping[str, Any], kinds: Mapping[str, str], scorer: Scorer
) -> dict[str, float]:
    """Print and write the results."""
    results: Mapping[str, Mapping[str, Any]] = {**found.get("groups", {}), **found["results"]}
    meaning = scorer.meaning
    means = {
        name: asdict(meaning) for name, kind in kinds.items() if meaning is not None and kind != GENERATES
    }
    metrics: dict[str, float] = {}
    table = Table(title="tasks", title_justify="left")
    for column in ("task", "metric", "value", "± error", "log-probabilities"):
        table.add_column(column, justify="right" if column in ("value", "± error") else "left")
    for name, values in results.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            shown = metric if filtered == "none" else f"{metric} ({filtered})"
            metrics[f"lm_eval/{name}/{shown}"] = float(value)
            error = values.get(f"{metric}_stderr,{filtered}")
            deviation = f"{error:.2g}" if isinstance(error, float) else "–"
            kind = kinds.get(name)
            label = "generated" if kind == GENERATES else _label(meaning)
            table.add_row(name, shown, f"{value:.5g}", deviation, label)
    console.print(table, soft_wrap=False)
    if scorer.num_truncated:
        say(f"  {scorer.num_truncated} contexts were cut on the left to fit {scorer.max_length} tokens")
    files = _write(folder, found, means, scorer, metrics)
    report.print_files(files)
    run_record.end(folder)
    return metrics


def _write(
    folder: Path,
    found: Mapping[str, Any],
    means: Mapping[str, Mapping[str, Any]],
    scorer: Scorer,
    metrics: Mapping[str, float],
) -> dict[str, Path]:
    content = {
        "likelihood": means,
        "context": scorer.layout,
        "max_length": scorer.max_length,
        "contexts_cut": scorer.num_truncated,
        "predictor": scorer.run.settings.predictor,
        **{name: value for name, value in found.items() if name != "samples"},
    }
    files = {"metrics": folder / METRICS, "results": folder / RESULTS}
    report.write_metrics(files["metrics"], metrics)
    write_text_atomically(files["results"], json.dumps(content, indent=2, default=str) + "\n")
    samples: Mapping[str, Sequence[Any]] = found.get("samples") or {}
    for name, rows in samples.items():
        files[f"samples of {name}"] = folder / f"samples_{name}.jsonl"
        lines = [json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows]
        write_text_atomically(files[f"samples of {name}"], "".join(lines))
    return files


def _label(meaning: Meaning | None) -> str:
    if meaning is None:
        return "–"
    draws = f", {meaning.num_draws} draws" if meaning.kind != "exact" else ""
    return f"{meaning.kind}, end {meaning.end}{draws}".replace("end length", "length")
