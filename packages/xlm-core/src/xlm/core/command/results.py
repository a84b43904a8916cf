"""Writers of further files about a result, which installed packages offer.

A package declares one by an entry point:

    [project.entry-points."xlm.results"]
    card = "xlm.eval.card:write_card"

Every job that evaluates the test split calls each of them with the :class:`Results`, on rank 0, after the
harness has written its own files. Likelihoods and generated texts are in the folder, a line for each row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from xlm.core.config.entry_points import RESULTS, load, offered
from xlm.core.data import DataModule
from xlm.core.hub.source import About
from xlm.core.training.run import Run


@dataclass(frozen=True)
class Results:
    """What a job has measured."""

    run: Run
    """The settings; those of the predictor are the ones that were used."""
    folder: Path
    """Folder with the files of the job."""
    metrics: Mapping[str, float]
    """The content of ``metrics.json``."""
    datamodule: DataModule
    """The rows of each test loader."""
    checkpoint: str
    """Path or URL of the weights."""
    weights: About
    """Their kind and step."""


Writer = Callable[[Results], Mapping[str, Path]]
"""Writes files and returns them under their names in the list of files."""


def write_results(results: Results) -> dict[str, Path]:
    """Call the writers of all installed packages.

    Returns:
        The written files under their names in the list of files.
    """
    return dict(pair for writer in _writers() for pair in writer(results).items())


def _writers() -> Iterator[Writer]:
    for name in sorted(offered(RESULTS)):
        yield cast("Writer", load(RESULTS, name))
