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

from xlm.core.config.entry_points import PAGES, RESULTS, load, offered
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

PageWriter = Callable[[Path], Path]
"""Writes a page of the recorded generations of a folder and returns its path."""


def write_results(results: Results) -> dict[str, Path]:
    """Call the writers of all installed packages.

    Returns:
        The written files under their names in the list of files.
    """
    return dict(pair for writer in _writers() for pair in writer(results).items())


def write_pages(folder: Path) -> dict[str, Path]:
    """Write the pages of the recorded generations of a folder, which has its config and ``traces.jsonl``.

    An entry point of the group ``xlm.pages`` is a function of the folder that returns the path of its page:

        [project.entry-points."xlm.pages"]
        view = "xlm.eval.viewing.job:write_page"

    Returns:
        The pages under the names of their entry points.
    """
    return {name: cast("PageWriter", load(PAGES, name))(folder) for name in sorted(offered(PAGES))}


def _writers() -> Iterator[Writer]:
    for name in sorted(offered(RESULTS)):
        yield cast("Writer", load(RESULTS, name))
