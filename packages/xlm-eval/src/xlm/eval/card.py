"""``card.json``: everything that a reader needs to judge a result, beside its ``metrics.json``."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from xlm.core.command.job import load_job
from xlm.core.command.results import Results
from xlm.core.config.build import make_all
from xlm.core.config.differences import flatten
from xlm.core.config.entry_points import GENERATION
from xlm.core.config.run_files import VERSIONS
from xlm.core.config.schema import LoaderSettings, RunSettings
from xlm.core.config.secrets import hide_text, known
from xlm.core.saving.checkpoints import write_text_atomically
from xlm.core.saving.run_record import now
from xlm.core.saving.versions import read_versions
from xlm.eval import card_text
from xlm.eval.data_rows import Lengths, LoaderRows, in_bytes
from xlm.eval.finished_runs import CARD, REPLICATES
from xlm.eval.intervals import Interval, percentile
from xlm.eval.rows import RatioOfSums, Scores, generations, likelihoods
from xlm.eval.usage import cpu_seconds, peak_memory

MARKDOWN = "card.md"
Replicates = dict[str, Tensor]
FORMAT = 1
"""Version of the layout of a card."""
ENVIRONMENT = ("device", "processes", "threads", "system", "git", "git_of_xlm", "started", "training")
"""Entries of ``versions.json`` that are not versions."""


def write_card(results: Results) -> dict[str, Path]:
    """Write the card as JSON and Markdown, and print it."""
    replicates: Replicates = {}
    card = make_card(results, replicates)
    paths = {"card": results.folder / CARD, "card (text)": results.folder / MARKDOWN}
    write_text_atomically(paths["card"], json.dumps(card, indent=2) + "\n")
    rounded = {name: _rounded(values) for name, values in replicates.items()}
    write_text_atomically(results.folder / REPLICATES, json.dumps(rounded) + "\n")
    write_text_atomically(paths["card (text)"], card_text.markdown(card))
    card_text.show(card)
    return paths


def _rounded(values: Tensor) -> list[float]:
    """Replicates of a metric with nine digits; one for a constant."""
    rounded = [float(f"{value:.9g}") for value in values.tolist()]
    return rounded[:1] if len(set(rounded)) == 1 else rounded


def make_card(results: Results, replicates: Replicates) -> dict[str, Any]:
    """Collect the facts of a result from its settings, its rows and the files in its folder.

    Args:
        results: The result.
        replicates: Receives the replicates of each metric, by the name of the metric without ``test/``.
    """
    settings = results.run.settings
    versions = read_versions(results.folder / VERSIONS)
    environment = {name: versions.pop(name, None) for name in (*ENVIRONMENT, "ended", "earlier")}
    loaders = {
        name: _loader(results, name, loader, int(environment["processes"]), replicates)
        for name, loader in settings.datamodule.test.items()
    }
    return {
        "format": FORMAT,
        "job": settings.job_type,
        "name": settings.job_name,
        "task": settings.task.name,
        "seed": settings.seed,
        "command": command_line(settings.job_type),
        "weights": {
            "path": results.checkpoint,
            "kind": results.weights.kind,
            "step": results.weights.step,
        },
        "tokenizer": _tokenizer(results),
        "loaders": loaders,
        "sampler": _sampler(settings.predictor) if _generates(settings.datamodule.test) else None,
        "training": environment["training"],
        "machine": {
            **{name: environment[name] for name in ("device", "processes", "threads", "system")},
            "dtype": settings.trainer.precision,
            "seconds": _seconds(environment["started"]),
            "cpu_seconds": cpu_seconds(),
            "peak_memory": peak_memory(),
        },
        "git": {"working_directory": environment["git"], "xlm": environment["git_of_xlm"]},
        "versions": versions,
    }


def _loader(
    results: Results, name: str, settings: LoaderSettings, processes: int, replicates: Replicates
) -> dict[str, Any]:
    loader = f"test/{name}"
    rows = LoaderRows(results.datamodule, name, results.run.tokenizer)
    found: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "rows": rows.describe(),
        "likelihood": [
            likelihood
            for of in ("network", "sampler")
            if (likelihood := _likelihood(results, loader, of, rows, processes, replicates)) is not None
        ],
    }
    if GENERATION in settings.uses:
        found["generation"] = _generation(results, loader, rows, processes, replicates)
    return found


def _likelihood(
    results: Results, loader: str, of: str, rows: LoaderRows, processes: int, replicates: Replicates
) -> dict[str, Any] | None:
    """The likelihood of a loader; None if there is none."""
    sums, impossible, clock = RatioOfSums(5), 0, Clock(processes)
    language = _language(results.run.settings)
    for records, texts in rows.with_texts(likelihoods(results.folder, loader, of)):
        log_p: list[float] = (
            [0.0] * len(texts) if language is None else language.text_log_probs(texts).tolist()
        )
        for record, text, nats_of_text in zip(records, texts, log_p, strict=True):
            clock.add(record, record["tokens"])
            nll = record["nll"]
            if math.isfinite(nll):
                sums.add((nll, record["tokens"], len(in_bytes(text)), 1.0, nll + nats_of_text))
            else:
                impossible += 1
                sums.add((0.0,) * 5)  # the next rows keep their positions, hence their weights
    if not clock.rows:
        return None
    sums.finish()
    nats, tokens, num_bytes, count, _ = sums.totals
    prefix = f"{loader}/{'sampler_' if of == 'sampler' else ''}"
    metrics = results.metrics
    per_token = sums.ratio(0, 1) if count and tokens else None
    for name, lower in (("nll", 3), ("nll_per_token", 1), ("nll_per_byte", 2)):
        if sums.totals[lower]:
            replicates[f"{prefix.removeprefix('test/')}{name}"] = sums.replicated(0, lower)[1]
    has_kl = language is not None and bool(metrics[f"{prefix}models_length"]) and not impossible and count
    if has_kl:
        replicates[f"{prefix.removeprefix('test/')}kl"] = sums.replicated(4, 3)[1]
    return {
        "of": of,
        "kind": "bound" if metrics[f"{prefix}is_bound"] else "exact",
        "draws": int(metrics[f"{prefix}num_draws"]) if metrics[f"{prefix}is_bound"] else 0,
        "length": "modelled" if metrics[f"{prefix}models_length"] else "given",
        "rows": clock.rows,
        "impossible_rows": impossible,
        "tokens": int(tokens),
        "bytes": int(num_bytes),
        "text_hash": rows.text_hash(),
        "nll": _entry(sums.ratio(0, 3)) if count else None,
        "standard_error": metrics[f"{prefix}nll_standard_error"],
        "nll_per_token": _entry(per_token),
        "nll_per_byte": _entry(sums.ratio(0, 2)) if num_bytes else None,
        "kl": _entry(sums.ratio(4, 3)) if has_kl else None,
        "bits_per_byte": nats / num_bytes / math.log(2) if num_bytes else None,
        "perplexity": None
        if per_token is None or impossible
        else _entry(Interval(*(math.exp(min(x, 700.0)) for x in astuple(per_token)))),
        "speed": clock.speed(),
    }


class _Language(Protocol):
    """A metric of a task whose texts have a known distribution."""

    def text_log_probs(self, texts: Sequence[str], /) -> Tensor:
        """(texts,) log p of whole texts, in nats."""
        ...


def _language(settings: RunSettings) -> _Language | None:
    """The metric of the task that has the exact probabilities of its texts; None without such a metric."""
    metrics = make_all(settings.task.metrics, "task.metrics").values()
    return next((cast("_Language", metric) for metric in metrics if hasattr(metric, "text_log_probs")), None)


def _generation(
    results: Results, loader: str, rows: LoaderRows, processes: int, replicates: Replicates
) -> dict[str, Any]:
    settings = results.run.settings
    scores = Scores(make_all(settings.task.metrics, "task.metrics"))
    clock, lengths = Clock(processes), Lengths()
    for record in generations(results.folder, loader):
        clock.add(record, len(record["ids"]))
        lengths.add(len(record["ids"]))
        scores.add(record)
    values, found = scores.finish()
    prefix = f"{loader}/"
    reported = {
        name.removeprefix(prefix): value
        for name, value in results.metrics.items()
        if name.startswith(prefix) and name.rpartition("/")[0] == loader
    }
    metrics: dict[str, Any] = {name: {"value": value} for name, value in reported.items()}
    for name, value in values.items():
        if name in reported and not math.isclose(value, reported[name], rel_tol=1e-6, abs_tol=1e-9):
            continue  # another metric of this name, or more than a function of sums over rows
        metrics[name] = _entry(percentile(value, found[name]))
        replicates[f"{prefix.removeprefix('test/')}{name}"] = found[name]
    targets = rows.target_lengths()
    return {
        "texts": clock.rows,
        "metrics": metrics,
        "lengths": lengths.quantiles(),
        "lengths_of_the_data": targets.quantiles(),
        "length_distance": lengths.distance(targets),
        "speed": clock.speed(),
    }


class Clock:
    """Seconds of batches, the first one apart, which includes the warm-up of the device.

    Args:
        processes: Number of processes, which work at the same time.
    """

    def __init__(self, processes: int) -> None:
        self.rows = 0
        self._processes = processes
        self._first, self._later, self._tokens, self._later_rows = 0.0, 0.0, 0.0, 0

    def add(self, record: Mapping[str, Any], tokens: float) -> None:
        """Add the row of a record with its seconds."""
        self.rows += 1
        if record["batch"] == 0:
            self._first += record["seconds"]
        else:
            self._later += record["seconds"]
            self._later_rows += 1
            self._tokens += tokens

    def speed(self) -> dict[str, float | None]:
        """Seconds, and rows and tokens per second after the first batch; None if there is only one."""
        first, later = self._first / self._processes, self._later / self._processes
        return {
            "seconds": first + later,
            "seconds_of_first_batch": first,
            "sequences_per_second": self._later_rows / later if later else None,
            "tokens_per_second": self._tokens / later if later else None,
        }


def _entry(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)


def _sampler(predictor: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the predictor, without the ids of the tokenizer."""
    return {
        key: value for key, value in flatten(predictor) if not key.endswith(("_id", "_ids")) and value != {}
    }


def _tokenizer(results: Results) -> str:
    tokenizer = results.run.tokenizer
    name = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return f"{name} {tokenizer.vocab_size} {getattr(tokenizer, 'fingerprint', '')}".rstrip()


def _generates(loaders: Mapping[str, LoaderSettings]) -> bool:
    return any(set(loader.uses) - {"loss", "likelihood"} for loader in loaders.values())


def command_line(job_type: str) -> str | None:
    """The command line as it was typed, without secrets; None if the program is not the command ``xlm``."""
    program, *arguments = sys.argv
    if Path(program).name != "xlm" and Path(program).parts[-3:] != ("xlm", "core", "__main__.py"):
        return None
    own = load_job(job_type).model_fields  # ``xlm`` has put ``++`` before these
    bare = [word.removeprefix("++") for word in arguments]
    typed = [new if new.partition("=")[0] in own else word for new, word in zip(bare, arguments, strict=True)]
    return hide_text(shlex.join(["xlm", *typed]), known())


def _seconds(started: str | None) -> float | None:
    """Seconds since the start of the job."""
    if started is None:
        return None
    return (datetime.fromisoformat(now()) - datetime.fromisoformat(started)).total_seconds()
