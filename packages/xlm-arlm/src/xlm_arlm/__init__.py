"""Autoregressive language model: the baseline that writes from left to right."""

from xlm.modules.records import Example as ARLMExample
from xlm.modules.records import Likelihood as ARLMLikelihood
from xlm.modules.records import Prediction as ARLMPrediction
from xlm.modules.records import Trace as ARLMTrace
from xlm.modules.records import TracedPrediction as ARLMTracedPrediction
from xlm_arlm.beam_arlm import ARLMBeamPredictor
from xlm_arlm.datamodule_arlm import ARLMCollator, ARLMPromptCollator
from xlm_arlm.loss_arlm import ARLMLoss
from xlm_arlm.metrics_arlm import ARLMMetrics
from xlm_arlm.model_arlm import ARLM
from xlm_arlm.predictor_arlm import ARLMPredictor
from xlm_arlm.types_arlm import (
    ARLMBatch,
    ARLMLossOutput,
    ARLMNetwork,
    ARLMPromptBatch,
)

__all__ = [
    "ARLM",
    "ARLMBatch",
    "ARLMBeamPredictor",
    "ARLMCollator",
    "ARLMExample",
    "ARLMLikelihood",
    "ARLMLoss",
    "ARLMLossOutput",
    "ARLMMetrics",
    "ARLMNetwork",
    "ARLMPrediction",
    "ARLMPredictor",
    "ARLMPromptBatch",
    "ARLMPromptCollator",
    "ARLMTrace",
    "ARLMTracedPrediction",
]
