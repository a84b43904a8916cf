"""Validation and test: each loader with its uses, from the first batch to the metrics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from xlm.core.config.schema import LoaderSettings, Stage
from xlm.core.data import LoadedBatch
from xlm.core.evaluation.metrics import SummedMetric
from xlm.core.evaluation.predictions import GeneratedTexts
from xlm.core.evaluation.slots import Slots
from xlm.core.evaluation.uses import Use, use_class


class Evaluation:
    """Evaluates the batches of every loader.

    Args:
        slots: The objects that the uses call.
        loaders: Settings of the loaders, by stage and name, in the data module's order.
    """

    def __init__(self, slots: Slots, loaders: Mapping[Stage, Mapping[str, LoaderSettings]]) -> None:
        self.texts = GeneratedTexts()
        self.uses: dict[Stage, dict[str, list[Use]]] = {
            stage: {
                name: [use_class(use)(slots, f"{stage}/{name}", self.texts) for use in settings.uses]
                for name, settings in named.items()
            }
            for stage, named in loaders.items()
        }
        """Uses by stage and loader. Those of training are only checked: the harness computes the loss."""

    def update(self, stage: Stage, loader: int, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Add a batch of the loader with index ``loader`` of the stage."""
        for use in list(self.uses[stage].values())[loader]:
            use.update(network, batch)

    def report(self, stage: Stage, device: torch.device) -> dict[str, float]:
        """Compute the metrics of a stage as ``stage/loader/metric``, and reset them.

        Args:
            stage: The same in all processes.
            device: Device on which the sums are reduced over processes.
        """
        results: dict[str, float] = {}
        for prefix, metric in self._metrics(stage):
            metric.to(device)
            results |= {f"{prefix}/{name}": value for name, value in metric.compute().items()}
            metric.reset()
            metric.cpu()
        return results

    def names(self, stage: Stage) -> set[str] | None:
        """Names of the metrics of a stage; None if a metric has no names before it has rows."""
        names: set[str] = set()
        for prefix, metric in self._metrics(stage):
            metric_names = metric.metric_names()
            if metric_names is None:
                return None
            names |= {f"{prefix}/{metric_name}" for metric_name in metric_names}
        return names

    def state(self, stage: Stage) -> list[dict[str, Any]]:
        """The sums of each metric of a stage; later updates do not change them."""
        return [metric.state() for _, metric in self._metrics(stage)]

    def restore(self, stage: Stage, states: Sequence[Mapping[str, Any]]) -> None:
        """Set the sums of :meth:`state`."""
        for (_, metric), state in zip(self._metrics(stage), states, strict=True):
            metric.restore(state)

    def _metrics(self, stage: Stage) -> Iterator[tuple[str, SummedMetric[Any]]]:
        """Each metric of a stage with the index of its loader."""
        for name, uses in self.uses[stage].items():
            for use in uses:
                for metric in use.metrics:
                    yield f"{stage}/{name}", metric
