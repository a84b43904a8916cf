"""Insertion by reversed deletion: discrete diffusion whose noise deletes tokens (arXiv:2603.23507)."""

from xlm.modules.records import Example as DIDExample
from xlm.modules.records import Likelihood as DIDLikelihood
from xlm.modules.records import Prediction as DIDPrediction
from xlm.modules.records import Trace as DIDTrace
from xlm.modules.records import TracedPrediction as DIDTracedPrediction
from xlm_did.datamodule_did import DIDCollator, DIDPromptCollator
from xlm_did.loss_did import DIDLoss
from xlm_did.metrics_did import DIDLossMetrics
from xlm_did.model_did import DID
from xlm_did.predictor_did import DIDPredictor
from xlm_did.types_did import (
    DIDBatch,
    DIDLossOutput,
    DIDNetwork,
    DIDOutput,
    DIDPromptBatch,
)

__all__ = [
    "DID",
    "DIDBatch",
    "DIDCollator",
    "DIDExample",
    "DIDLikelihood",
    "DIDLoss",
    "DIDLossMetrics",
    "DIDLossOutput",
    "DIDNetwork",
    "DIDOutput",
    "DIDPrediction",
    "DIDPredictor",
    "DIDPromptBatch",
    "DIDPromptCollator",
    "DIDTrace",
    "DIDTracedPrediction",
]
