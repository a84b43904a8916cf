"""Uniform-state diffusion language model (Schiff et al. 2024, arXiv:2412.10193)."""

from xlm.modules.records import Example as UDLMExample
from xlm.modules.records import Likelihood as UDLMLikelihood
from xlm.modules.records import Prediction as UDLMPrediction
from xlm.modules.records import Trace as UDLMTrace
from xlm.modules.records import TracedPrediction as UDLMTracedPrediction
from xlm_udlm.curriculum_udlm import GaussianCurriculum
from xlm_udlm.datamodule_udlm import UDLMCollator, UDLMLikelihoodCollator, UDLMPromptCollator
from xlm_udlm.loss_udlm import UDLMLoss
from xlm_udlm.metrics_udlm import UDLMMetrics
from xlm_udlm.model_udlm import UDLMDiT, UDLMRotary
from xlm_udlm.predictor_udlm import UDLMPredictor
from xlm_udlm.samplers_udlm import UDLMSampler
from xlm_udlm.types_udlm import UDLMBatch, UDLMLossOutput, UDLMNetwork, UDLMPromptBatch

__all__ = [
    "GaussianCurriculum",
    "UDLMBatch",
    "UDLMCollator",
    "UDLMDiT",
    "UDLMExample",
    "UDLMLikelihood",
    "UDLMLikelihoodCollator",
    "UDLMLoss",
    "UDLMLossOutput",
    "UDLMMetrics",
    "UDLMNetwork",
    "UDLMPrediction",
    "UDLMPredictor",
    "UDLMPromptBatch",
    "UDLMPromptCollator",
    "UDLMRotary",
    "UDLMSampler",
    "UDLMTrace",
    "UDLMTracedPrediction",
]
