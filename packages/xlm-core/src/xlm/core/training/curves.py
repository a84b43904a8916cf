"""Charts of TensorBoard with the curves of training and validation together."""

import re
from collections.abc import Iterable

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def draw_together(loggers: Iterable[Logger], names: Iterable[str]) -> None:
    """Draw each training metric and its namesake on every validation loader in one chart.

    The charts are on TensorBoard's page CUSTOM SCALARS.

    Args:
        loggers: Loggers other than TensorBoard are ignored.
        names: Training metrics, such as ``train/loss``.
    """
    last = sorted(name.removeprefix("train/") for name in names)
    charts = {
        name: ["Multiline", [f"^train/{re.escape(name)}$", f"^val/[^/]+/{re.escape(name)}$"]] for name in last
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"training and validation": charts})
