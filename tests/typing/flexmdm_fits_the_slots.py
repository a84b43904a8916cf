"""Read by the type checker, never run: each part of xlm-flexmdm fits its slot; what does not is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.modules.records import Trace
from xlm_flexmdm import (
    FlexMDM,
    FlexMDMCollator,
    FlexMDMLikelihoodCollator,
    FlexMDMLoss,
    FlexMDMMetrics,
    FlexMDMPredictor,
    FlexMDMPromptCollator,
)
from xlm_flexmdm.types_flexmdm import FlexMDMBatch, FlexMDMLossOutput, FlexMDMPromptBatch


def fits(
    network: FlexMDM,
    collator: FlexMDMCollator,
    likelihood_collator: FlexMDMLikelihoodCollator,
    prompt_collator: FlexMDMPromptCollator,
    loss: FlexMDMLoss,
    predictor: FlexMDMPredictor,
    loss_metrics: FlexMDMMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[FlexMDMBatch] = collator
    _likelihood_collator: Collator[FlexMDMBatch] = likelihood_collator
    _prompt_collator: Collator[FlexMDMPromptBatch] = prompt_collator
    _loss: Loss[FlexMDMBatch] = loss
    _likelihood: LikelihoodLoss[FlexMDMBatch] = loss
    _predictor: Predictor[FlexMDMPromptBatch] = predictor
    _loss_metrics: LossMetric[FlexMDMLossOutput] = loss_metrics


def what_calls_give(
    network: FlexMDM,
    batch: FlexMDMBatch,
    loss: FlexMDMLoss,
    prompts: FlexMDMPromptBatch,
    predictor: FlexMDMPredictor,
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


def misfits(
    collator: FlexMDMCollator, loss: FlexMDMLoss, predictor: FlexMDMPredictor, network: FlexMDM
) -> None:
    _other_batch: Collator[FlexMDMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[FlexMDMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[FlexMDMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[FlexMDMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[FlexMDMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[FlexMDMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums
