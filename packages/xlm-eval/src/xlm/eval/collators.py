"""The collators of a config, found by what their loaders are used for."""

from typing import Any

from xlm.core.config.build import make
from xlm.core.protocols import Collator
from xlm.core.training.run import Run

LIKELIHOOD = "likelihood"
"""The use of a loader whose batches the loss scores."""


def collator_of(run: Run, use: str, first: str) -> Collator[Any] | None:
    """The collator of the first loader with a use, those of the stage ``first`` before the others."""
    loaders = run.settings.datamodule.loaders
    for stage, named in sorted(loaders.items(), key=lambda item: item[0] != first):
        for name, loader in named.items():
            if use in loader.uses:
                return make(loader.collator, f"datamodule.{stage}.{name}.collator")
    return None
