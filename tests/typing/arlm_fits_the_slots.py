"""Read by the type checker, never run: each part of xlm-arlm fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

from torch import nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm_arlm import (
    ARLM,
    ARLMBeamPredictor,
    ARLMCollator,
    ARLMLoss,
    ARLMMetrics,
    ARLMPredictor,
    ARLMPromptCollator,
)
from xlm_arlm.types_arlm import ARLMBatch, ARLMLossOutput, ARLMPromptBatch


def fits(
    network: ARLM,
    collator: ARLMCollator,
    prompt_collator: ARLMPromptCollator,
    loss: ARLMLoss,
    predictor: ARLMPredictor,
    beam: ARLMBeamPredictor,
    loss_metrics: ARLMMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[ARLMBatch] = collator
    _prompt_collator: Collator[ARLMPromptBatch] = prompt_collator
    _loss: Loss[ARLMBatch] = loss
    _likelihood: LikelihoodLoss[ARLMBatch] = loss
    _predictor: Predictor[ARLMPromptBatch] = predictor
    _beam: Predictor[ARLMPromptBatch] = beam
    _loss_metrics: LossMetric[ARLMLossOutput] = loss_metrics


def misfits(collator: ARLMCollator, loss: ARLMLoss, predictor: ARLMPredictor, network: ARLM) -> None:
    _other_batch: Collator[ARLMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[ARLMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[ARLMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[ARLMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[ARLMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[ARLMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums
