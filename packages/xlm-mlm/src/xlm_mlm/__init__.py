"""Masked language model with iterative unmasking (Ghazvininejad et al. 2019, arXiv:1904.09324)."""

from xlm.modules.records import Example as MLMExample
from xlm.modules.records import Likelihood as MLMLikelihood
from xlm.modules.records import Prediction as MLMPrediction
from xlm.modules.records import Trace as MLMTrace
from xlm.modules.records import TracedPrediction as MLMTracedPrediction
from xlm_mlm.datamodule_mlm import MLMCollator, MLMLikelihoodCollator, MLMPromptCollator
from xlm_mlm.loss_mlm import MLMLoss
from xlm_mlm.metrics_mlm import MLMMetrics
from xlm_mlm.model_mlm import MLM
from xlm_mlm.predictor_mlm import MLMPredictor
from xlm_mlm.types_mlm import (
    MLMBatch,
    MLMLossOutput,
    MLMNetwork,
    MLMPromptBatch,
)

__all__ = [
    "MLM",
    "MLMBatch",
    "MLMCollator",
    "MLMExample",
    "MLMLikelihood",
    "MLMLikelihoodCollator",
    "MLMLoss",
    "MLMLossOutput",
    "MLMMetrics",
    "MLMNetwork",
    "MLMPrediction",
    "MLMPredictor",
    "MLMPromptBatch",
    "MLMPromptCollator",
    "MLMTrace",
    "MLMTracedPrediction",
]
