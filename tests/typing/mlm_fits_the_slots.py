"""Read by the type checker, never run: each part of xlm-mlm fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.modules.records import Trace
from xlm_mlm import (
    MLM,
    MLMCollator,
    MLMLikelihoodCollator,
    MLMLoss,
    MLMMetrics,
    MLMPredictor,
    MLMPromptCollator,
)
from xlm_mlm.types_mlm import MLMBatch, MLMLossOutput, MLMPromptBatch


def fits(
    network: MLM,
    collator: MLMCollator,
    likelihood_collator: MLMLikelihoodCollator,
    prompt_collator: MLMPromptCollator,
    loss: MLMLoss,
    predictor: MLMPredictor,
    loss_metrics: MLMMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[MLMBatch] = collator
    _likelihood_collator: Collator[MLMBatch] = likelihood_collator
    _prompt_collator: Collator[MLMPromptBatch] = prompt_collator
    _loss: Loss[MLMBatch] = loss
    _likelihood: LikelihoodLoss[MLMBatch] = loss
    _predictor: Predictor[MLMPromptBatch] = predictor
    _loss_metrics: LossMetric[MLMLossOutput] = loss_metrics


def what_calls_give(
    network: MLM,
    batch: MLMBatch,
    loss: MLMLoss,
    prompts: MLMPromptBatch,
    predictor: MLMPredictor,
    seeds: Tensor,
    ask: bool,
) -> None:
    compiled = torch.compile(network)
    _loss: Tensor = loss(compiled, batch).loss_sum
    _nll: Tensor = loss.likelihood(compiled, batch).nll
    _ids: Tensor = predictor(compiled, prompts, seeds).ids
    _tokens: Tensor = predictor(network, prompts, seeds, trace=True).trace.token
    _edits: Trace | None = predictor(network, prompts, seeds, trace=ask).trace
    _no_tokens = predictor(network, prompts, seeds).trace.token  # pyright: ignore[reportOptionalMemberAccess]  # not requested
    loss(seeds.sum(), batch)  # pyright: ignore[reportArgumentType]  # no network


def misfits(collator: MLMCollator, loss: MLMLoss, predictor: MLMPredictor, network: MLM) -> None:
    _other_batch: Collator[MLMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[MLMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[MLMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[MLMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[MLMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[MLMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums
