"""Read by the type checker, never run: each part of xlm-arlm fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.eval.field_tasks.scorer import PrefixLikelihoodLoss
from xlm.modules.records import Trace
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
    _prefix: PrefixLikelihoodLoss = loss
    _predictor: Predictor[ARLMPromptBatch] = predictor
    _beam: Predictor[ARLMPromptBatch] = beam
    _loss_metrics: LossMetric[ARLMLossOutput] = loss_metrics


def what_calls_give(
    network: ARLM,
    batch: ARLMBatch,
    loss: ARLMLoss,
    prompts: ARLMPromptBatch,
    predictor: ARLMPredictor | ARLMBeamPredictor,
    seeds: Tensor,
    ask: bool,
) -> None:
    compiled = torch.compile(network)
    _loss: Tensor = loss(compiled, batch).loss_sum
    _nll: Tensor = loss.likelihood(compiled, batch).nll
    _ids: Tensor = predictor(compiled, prompts, seeds).ids
    _tokens: Tensor = predictor(network, prompts, seeds, trace=True).trace.token
    _edits: Trace | None = predictor(network, prompts, seeds, trace=ask).trace
    if isinstance(predictor, ARLMPredictor):
        _nats: Tensor = predictor(network, prompts, seeds, trace="full").trace.log_prob
    _no_tokens = predictor(network, prompts, seeds).trace.token  # pyright: ignore[reportOptionalMemberAccess]  # not requested
    loss(seeds.sum(), batch)  # pyright: ignore[reportArgumentType]  # no network


def misfits(collator: ARLMCollator, loss: ARLMLoss, predictor: ARLMPredictor, network: ARLM) -> None:
    _other_batch: Collator[ARLMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[ARLMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[ARLMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[ARLMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[ARLMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[ARLMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums
