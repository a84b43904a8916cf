"""Read by the type checker, never run: each part of xlm-editflow fits its slot; what does not fit is refused.

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
from xlm_editflow import (
    EditFlow,
    EditFlowCollator,
    EditFlowLoss,
    EditFlowLossMetrics,
    EditFlowPredictor,
    EditFlowPromptCollator,
)
from xlm_editflow.types_editflow import EditFlowBatch, EditFlowLossOutput, EditFlowPromptBatch


def fits(
    network: EditFlow,
    collator: EditFlowCollator,
    prompt_collator: EditFlowPromptCollator,
    loss: EditFlowLoss,
    predictor: EditFlowPredictor,
    loss_metrics: EditFlowLossMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[EditFlowBatch] = collator
    _prompt_collator: Collator[EditFlowPromptBatch] = prompt_collator
    _loss: Loss[EditFlowBatch] = loss
    _likelihood: LikelihoodLoss[EditFlowBatch] = loss
    _predictor: Predictor[EditFlowPromptBatch] = predictor
    _loss_metrics: LossMetric[EditFlowLossOutput] = loss_metrics


def shared_parts_fit(tokenizer: NumberTokenizer, metrics: StarMetrics) -> None:
    _tokenizer: Tokenizer = tokenizer
    _metrics: GenerationMetric = metrics
    _schedules: list[NoiseSchedule] = [LogLinear(), Cosine()]


def what_calls_give(
    network: EditFlow,
    batch: EditFlowBatch,
    loss: EditFlowLoss,
    prompts: EditFlowPromptBatch,
    predictor: EditFlowPredictor,
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
    collator: EditFlowCollator,
    loss: EditFlowLoss,
    predictor: EditFlowPredictor,
    tokenizer: NumberTokenizer,
    network: EditFlow,
) -> None:
    _other_batch: Collator[EditFlowPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[EditFlowPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[EditFlowBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[EditFlowBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[EditFlowBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[EditFlowLossOutput] = tokenizer  # pyright: ignore[reportAssignmentType]  # has no sums
    _no_schedule: NoiseSchedule = tokenizer  # pyright: ignore[reportAssignmentType]  # has no alpha
