"""Insertion language model (Patel et al. 2025, arXiv:2505.05755)."""

from xlm.modules.records import Example as ILMExample
from xlm.modules.records import Likelihood as ILMLikelihood
from xlm.modules.records import Prediction as ILMPrediction
from xlm.modules.records import Trace as ILMTrace
from xlm.modules.records import TracedPrediction as ILMTracedPrediction
from xlm_ilm.datamodule_ilm import ILMCollator, ILMPromptCollator
from xlm_ilm.loss_ilm import ILMLoss
from xlm_ilm.metrics_ilm import ILMLossMetrics
from xlm_ilm.model_ilm import ILM
from xlm_ilm.predictor_ilm import ILMPredictor
from xlm_ilm.types_ilm import (
    ILMBatch,
    ILMLossOutput,
    ILMNetwork,
    ILMOutput,
    ILMPromptBatch,
)

__all__ = [
    "ILM",
    "ILMBatch",
    "ILMCollator",
    "ILMExample",
    "ILMLikelihood",
    "ILMLoss",
    "ILMLossMetrics",
    "ILMLossOutput",
    "ILMNetwork",
    "ILMOutput",
    "ILMPrediction",
    "ILMPredictor",
    "ILMPromptBatch",
    "ILMPromptCollator",
    "ILMTrace",
    "ILMTracedPrediction",
]
