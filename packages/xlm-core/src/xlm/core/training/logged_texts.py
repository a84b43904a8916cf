"""Generated texts in TensorBoard and Weights & Biases; loggers of numbers alone show none."""

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from xlm.core.evaluation.predictions import GeneratedTexts


def log_texts(loggers: Iterable[Logger], texts: GeneratedTexts, step: int) -> None:
    """Show the first generations of each loader, and the lengths of all of this process.

    Args:
        loggers: Those other than TensorBoard and Weights & Biases are ignored.
        texts: The generations of an evaluation.
        step: Optimizer steps so far.
    """
    columns = ["prompt", "text", "reference"]
    for logger, (loader, samples) in itertools.product(loggers, texts.samples.items()):
        rows = [[generation["prompt"], generation["text"], generation["reference"]] for generation in samples]
        if isinstance(logger, TensorBoardLogger):
            lengths = torch.tensor(list(texts.lengths[loader].elements()))
            logger.experiment.add_text(f"{loader}/texts", _table(columns, rows), step)
            logger.experiment.add_histogram(f"{loader}/lengths", lengths, step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(f"{loader}/texts", columns=columns, data=rows, step=step)
            histogram: Any = import_module("wandb").Histogram(list(texts.lengths[loader].elements()))
            logger.log_metrics({f"{loader}/lengths": histogram}, step)


def log_pages(loggers: Iterable[Logger], pages: Mapping[str, Path]) -> None:
    """Show the path of each page of recorded generations."""
    for logger, (name, page) in itertools.product(loggers, pages.items()):
        path = str(page.absolute())
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(f"pages/{name}", path)
        elif isinstance(logger, WandbLogger):
            logger.log_text(f"pages/{name}", columns=["path"], data=[[path]])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; every text is a cell of its own."""
    cells = [[html.escape(text).replace("|", "&#124;").replace("\n", "<br>") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *cells])
