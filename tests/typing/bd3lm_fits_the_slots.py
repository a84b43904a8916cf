"""Read by the type checker, never run: each part of xlm-bd3lm fits its slot, and other things are refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.modules.records import Trace
from xlm_bd3lm import (
    BD3LMCollator,
    BD3LMDiT,
    BD3LMLikelihoodCollator,
    BD3LMLoss,
    BD3LMMetrics,
    BD3LMPredictor,
    BD3LMPromptCollator,
    BD3LMRotary,
)
from xlm_bd3lm.types_bd3lm import BD3LMBatch, BD3LMLossOutput, BD3LMPromptBatch


def fits(
    networks: BD3LMRotary | BD3LMDiT,
    collator: BD3LMCollator,
    likelihood_collator: BD3LMLikelihoodCollator,
    prompt_collator: BD3LMPromptCollator,
    loss: BD3LMLoss,
    predictor: BD3LMPredictor,
    loss_metrics: BD3LMMetrics,
) -> None:
    _model: nn.Module = networks
    _collator: Collator[BD3LMBatch] = collator
    _likelihood_collator: Collator[BD3LMBatch] = likelihood_collator
    _prompt_collator: Collator[BD3LMPromptBatch] = prompt_collator
    _loss: Loss[BD3LMBatch] = loss
    _likelihood: LikelihoodLoss[BD3LMBatch] = loss
    _predictor: Predictor[BD3LMPromptBatch] = predictor
    _loss_metrics: LossMetric[BD3LMLossOutput] = loss_metrics


def what_calls_give(
    network: BD3LMRotary | BD3LMDiT,
    batch: BD3LMBatch,
    loss: BD3LMLoss,
    prompts: BD3LMPromptBatch,
    predictor: BD3LMPredictor,
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
    collator: BD3LMCollator, loss: BD3LMLoss, predictor: BD3LMPredictor, network: BD3LMRotary
) -> None:
    _other_batch: Collator[BD3LMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[BD3LMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[BD3LMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[BD3LMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[BD3LMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[BD3LMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums
