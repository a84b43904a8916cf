"""A masked language model in its least form: a start for a model family of one's own."""

from xlm_skeleton.datamodule_skeleton import SkeletonCollator, SkeletonPromptCollator
from xlm_skeleton.loss_skeleton import SkeletonLoss
from xlm_skeleton.metrics_skeleton import SkeletonMetrics
from xlm_skeleton.model_skeleton import Skeleton
from xlm_skeleton.predictor_skeleton import SkeletonPredictor
from xlm_skeleton.types_skeleton import (
    SkeletonBatch,
    SkeletonExample,
    SkeletonLikelihood,
    SkeletonLossOutput,
    SkeletonPrediction,
    SkeletonPromptBatch,
    SkeletonTrace,
)

__all__ = [
    "Skeleton",
    "SkeletonBatch",
    "SkeletonCollator",
    "SkeletonExample",
    "SkeletonLikelihood",
    "SkeletonLoss",
    "SkeletonLossOutput",
    "SkeletonMetrics",
    "SkeletonPrediction",
    "SkeletonPredictor",
    "SkeletonPromptBatch",
    "SkeletonPromptCollator",
    "SkeletonTrace",
]
