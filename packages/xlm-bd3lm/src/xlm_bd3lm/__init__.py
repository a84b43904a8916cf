"""Block diffusion language model (Arriola et al. 2025, arXiv:2503.09573)."""

from xlm.modules.records import Example as BD3LMExample
from xlm.modules.records import Likelihood as BD3LMLikelihood
from xlm.modules.records import Prediction as BD3LMPrediction
from xlm.modules.records import Trace as BD3LMTrace
from xlm.modules.records import TracedPrediction as BD3LMTracedPrediction
from xlm_bd3lm.datamodule_bd3lm import BD3LMCollator, BD3LMLikelihoodCollator, BD3LMPromptCollator
from xlm_bd3lm.loss_bd3lm import BD3LMLoss
from xlm_bd3lm.metrics_bd3lm import BD3LMMetrics
from xlm_bd3lm.model_bd3lm import BD3LMDiT, BD3LMRotary
from xlm_bd3lm.predictor_bd3lm import BD3LMPredictor
from xlm_bd3lm.types_bd3lm import (
    BD3LMBatch,
    BD3LMLossOutput,
    BD3LMNetwork,
    BD3LMPromptBatch,
)

__all__ = [
    "BD3LMBatch",
    "BD3LMCollator",
    "BD3LMDiT",
    "BD3LMExample",
    "BD3LMLikelihood",
    "BD3LMLikelihoodCollator",
    "BD3LMLoss",
    "BD3LMLossOutput",
    "BD3LMMetrics",
    "BD3LMNetwork",
    "BD3LMPrediction",
    "BD3LMPredictor",
    "BD3LMPromptBatch",
    "BD3LMPromptCollator",
    "BD3LMRotary",
    "BD3LMTrace",
    "BD3LMTracedPrediction",
]
