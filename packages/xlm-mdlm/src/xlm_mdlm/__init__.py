"""Masked diffusion language model (Sahoo et al. 2024, arXiv:2406.07524)."""

from xlm.modules.records import Example as MDLMExample
from xlm.modules.records import Likelihood as MDLMLikelihood
from xlm.modules.records import Prediction as MDLMPrediction
from xlm.modules.records import Trace as MDLMTrace
from xlm.modules.records import TracedPrediction as MDLMTracedPrediction
from xlm_mdlm.datamodule_mdlm import MDLMCollator, MDLMLikelihoodCollator, MDLMPromptCollator
from xlm_mdlm.loss_mdlm import MDLMLoss
from xlm_mdlm.metrics_mdlm import MDLMMetrics
from xlm_mdlm.model_mdlm import MDLMDiT, MDLMRotary
from xlm_mdlm.predictor_mdlm import MDLMPredictor
from xlm_mdlm.types_mdlm import (
    MDLMBatch,
    MDLMLossOutput,
    MDLMNetwork,
    MDLMPromptBatch,
)

__all__ = [
    "MDLMBatch",
    "MDLMCollator",
    "MDLMDiT",
    "MDLMExample",
    "MDLMLikelihood",
    "MDLMLikelihoodCollator",
    "MDLMLoss",
    "MDLMLossOutput",
    "MDLMMetrics",
    "MDLMNetwork",
    "MDLMPrediction",
    "MDLMPredictor",
    "MDLMPromptBatch",
    "MDLMPromptCollator",
    "MDLMRotary",
    "MDLMTrace",
    "MDLMTracedPrediction",
]
