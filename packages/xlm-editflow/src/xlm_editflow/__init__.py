"""Edit flows: insertions, deletions and substitutions turn any text into another (arXiv:2506.09018)."""

from xlm.modules.records import Example as EditFlowExample
from xlm.modules.records import Likelihood as EditFlowLikelihood
from xlm.modules.records import Prediction as EditFlowPrediction
from xlm.modules.records import Trace as EditFlowTrace
from xlm.modules.records import TracedPrediction as EditFlowTracedPrediction
from xlm_editflow.datamodule_editflow import EditFlowCollator, EditFlowPromptCollator
from xlm_editflow.loss_editflow import EditFlowLoss
from xlm_editflow.metrics_editflow import EditFlowLossMetrics
from xlm_editflow.model_editflow import EditFlow
from xlm_editflow.predictor_editflow import EditFlowPredictor
from xlm_editflow.sources_editflow import Corrupted, Empty, Prompt, RandomTokens
from xlm_editflow.types_editflow import (
    EditFlowBatch,
    EditFlowLossOutput,
    EditFlowNetwork,
    EditFlowOutput,
    EditFlowPromptBatch,
)

__all__ = [
    "Corrupted",
    "EditFlow",
    "EditFlowBatch",
    "EditFlowCollator",
    "EditFlowExample",
    "EditFlowLikelihood",
    "EditFlowLoss",
    "EditFlowLossMetrics",
    "EditFlowLossOutput",
    "EditFlowNetwork",
    "EditFlowOutput",
    "EditFlowPrediction",
    "EditFlowPredictor",
    "EditFlowPromptBatch",
    "EditFlowPromptCollator",
    "EditFlowTrace",
    "EditFlowTracedPrediction",
    "Empty",
    "Prompt",
    "RandomTokens",
]
