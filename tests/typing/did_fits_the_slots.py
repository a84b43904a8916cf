"""Read by the type checker, never run: each part of xlm-did fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import (
    Collator,
    GenerationMetric,
    LikelihoodLoss,
    Loss,
    LossMetric,
    NoiseSchedule,
    Predictor,
    Tokenizer,
)
from xlm.modules import Cosine, LogLinear
from xlm.modules.records import Trace
from xlm.tasks.star import StarMetrics
from xlm.tasks.tokenizers import NumberTokenizer
from xlm_did import DID, DIDCollator, DIDLoss, DIDLossMetrics, DIDPredictor, DIDPromptCollator
from xlm_did.types_did import DIDBatch, DIDLossOutput, DIDPromptBatch


def fits(
    network: DID,
    collator: DIDCollator,
    prompt_collator: DIDPromptCollator,
    loss: DIDLoss,
    predictor: DIDPredictor,
    loss_metrics: DIDLossMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[DIDBatch] = collator
    _prompt_collator: Collator[DIDPromptBatch] = prompt_collator
    _loss: Loss[DIDBatch] = loss
    _likelihood: LikelihoodLoss[DIDBatch] = loss
    _predictor: Predictor[DIDPromptBatch] = predictor
    _loss_metrics: LossMetric[DIDLossOutput] = loss_metrics


def shared_parts_fit(tokenizer: NumberTokenizer, metrics: StarMetrics) -> None:
    _tokenizer: Tokenizer = tokenizer
    _metrics: GenerationMetric = metrics
    _schedules: list[NoiseSchedule] = [LogLinear(), Cosine()]


def what_calls_give(
    network: DID,
    batch: DIDBatch,
    loss: DIDLoss,
    prompts: DIDPromptBatch,
    predictor: DIDPredictor,
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
    collator: DIDCollator, loss: DIDLoss, predictor: DIDPredictor, tokenizer: NumberTokenizer, network: DID
) -> None:
    _other_batch: Collator[DIDPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[DIDPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[DIDBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[DIDBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[DIDBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[DIDLossOutput] = tokenizer  # pyright: ignore[reportAssignmentType]  # has no sums
    _no_schedule: NoiseSchedule = tokenizer  # pyright: ignore[reportAssignmentType]  # has no alpha
