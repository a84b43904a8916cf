"""FlexMDM, masked diffusion of variable length (Kim et al. 2025, arXiv:2509.01025)."""

from xlm.modules.records import Example as FlexMDMExample
from xlm.modules.records import Prediction as FlexMDMPrediction
from xlm.modules.records import Trace as FlexMDMTrace
from xlm.modules.records import TracedPrediction as FlexMDMTracedPrediction
from xlm_flexmdm.datamodule_flexmdm import FlexMDMCollator, FlexMDMLikelihoodCollator, FlexMDMPromptCollator
from xlm_flexmdm.interpolant_flexmdm import Interpolant
from xlm_flexmdm.loss_flexmdm import FlexMDMLoss, gap_divergence
from xlm_flexmdm.metrics_flexmdm import FlexMDMMetrics
from xlm_flexmdm.model_flexmdm import FlexMDM
from xlm_flexmdm.posterior_flexmdm import embedding_posterior, expected_gaps
from xlm_flexmdm.predictor_flexmdm import FlexMDMPredictor
from xlm_flexmdm.text_flexmdm import insertions, poisson
from xlm_flexmdm.types_flexmdm import (
    FlexMDMBatch,
    FlexMDMLikelihood,
    FlexMDMLossOutput,
    FlexMDMNetwork,
    FlexMDMOutput,
    FlexMDMPromptBatch,
)

__all__ = [
    "FlexMDM",
    "FlexMDMBatch",
    "FlexMDMCollator",
    "FlexMDMExample",
    "FlexMDMLikelihood",
    "FlexMDMLikelihoodCollator",
    "FlexMDMLoss",
    "FlexMDMLossOutput",
    "FlexMDMMetrics",
    "FlexMDMNetwork",
    "FlexMDMOutput",
    "FlexMDMPrediction",
    "FlexMDMPredictor",
    "FlexMDMPromptBatch",
    "FlexMDMPromptCollator",
    "FlexMDMTrace",
    "FlexMDMTracedPrediction",
    "Interpolant",
    "embedding_posterior",
    "expected_gaps",
    "gap_divergence",
    "insertions",
    "poisson",
]
