"""The objects in the slots of the harness."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from xlm.core.config.schema import SamplerLikelihoodSettings
from xlm.core.protocols import (
    GenerationMetric,
    Loss,
    LossMetric,
    LRSchedulerFactory,
    OptimizerFactory,
    Predictor,
    Tokenizer,
)


@dataclass(frozen=True)
class Slots:
    """All slots of a config, as objects, and how they are evaluated."""

    tokenizer: Tokenizer
    model: nn.Module
    loss: Loss[Any]
    predictor: Predictor[Any]
    optimizer: OptimizerFactory
    lr_scheduler: LRSchedulerFactory
    loss_metrics: Mapping[str, LossMetric[Any]] = field(default_factory=dict[str, LossMetric[Any]])
    generation_metrics: Mapping[str, GenerationMetric] = field(default_factory=dict[str, GenerationMetric])
    sampler_likelihood: SamplerLikelihoodSettings = field(default_factory=SamplerLikelihoodSettings)
    """How the sampler of the predictor is scored."""
    trace: Literal[True, "full"] = True
    """What the predictor records of generations that are shown; ``full``: with probabilities."""
