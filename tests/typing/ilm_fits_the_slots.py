"""Read by the type checker, never run: each part of xlm-ilm fits its slot, and what does not fit is refused.

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
from xlm_ilm import ILM, ILMCollator, ILMLoss, ILMLossMetrics, ILMPredictor, ILMPromptCollator
from xlm_ilm.types_ilm import ILMBatch, ILMLossOutput, ILMPromptBatch


def fits(
    network: ILM,
    collator: ILMCollator,
    prompt_collator: ILMPromptCollator,
    loss: ILMLoss,
    predictor: ILMPredictor,
    loss_metrics: ILMLossMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[ILMBatch] = collator
    _prompt_collator: Collator[ILMPromptBatch] = prompt_collator
    _loss: Loss[ILMBatch] = loss
    _likelihood: LikelihoodLoss[ILMBatch] = loss
    _predictor: Predictor[ILMPromptBatch] = predictor
    _loss_metrics: LossMetric[ILMLossOutput] = loss_metrics


def shared_parts_fit(tokenizer: NumberTokenizer, metrics: StarMetrics) -> None:
    _tokenizer: Tokenizer = tokenizer
    _metrics: GenerationMetric = metrics
    _schedules: list[NoiseSchedule] = [LogLinear(), Cosine()]


def what_calls_give(
    network: ILM,
    batch: ILMBatch,
    loss: ILMLoss,
    prompts: ILMPromptBatch,
    predictor: ILMPredictor,
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
    collator: ILMCollator, loss: ILMLoss, predictor: ILMPredictor, tokenizer: NumberTokenizer, network: ILM
) -> None:
    _other_batch: Collator[ILMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[ILMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[ILMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[ILMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[ILMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[ILMLossOutput] = tokenizer  # pyright: ignore[reportAssignmentType]  # has no sums
    _no_schedule: NoiseSchedule = tokenizer  # pyright: ignore[reportAssignmentType]  # has no alpha
