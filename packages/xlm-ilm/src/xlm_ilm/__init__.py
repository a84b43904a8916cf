"""Insertion language model (Patel et al. 2025, arXiv:2505.05755)."""

from xlm_ilm.datamodule_ilm import ILMCollator, ILMPromptCollator
from xlm_ilm.loss_ilm import ILMLoss
from xlm_ilm.metrics_ilm import ILMLossMetrics
from xlm_ilm.model_ilm import ILM
from xlm_ilm.predictor_ilm import ILMPredictor
from xlm_ilm.types_ilm import (
    ILMBatch,
    ILMExample,
    ILMLikelihood,
    ILMLossOutput,
    ILMNetwork,
    ILMOutput,
    ILMPrediction,
    ILMPromptBatch,
    ILMTrace,
    ILMTracedPrediction,
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
