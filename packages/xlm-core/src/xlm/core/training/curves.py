"""Charts of TensorBoard in which the curves of training and validation lie together."""

import re
from collections.abc import Iterable

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def draw_together(loggers: Iterable[Logger], names: Iterable[str]) -> None:
    """Draw each metric of training with that of the same name on every validation loader, in one chart.

    The charts are on TensorBoard's page CUSTOM SCALARS.

    Args:
        loggers: Those that are not TensorBoard's draw as they like.
        names: Metrics of training, such as ``train/loss``.
    """
    last = sorted(name.removeprefix("train/") for name in names)
    charts = {
        name: ["Multiline", [f"^train/{re.escape(name)}$", f"^val/[^/]+/{re.escape(name)}$"]] for name in last
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"training and validation": charts})
