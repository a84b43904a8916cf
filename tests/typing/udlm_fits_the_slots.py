"""Read by the type checker, never run: each part of xlm-udlm fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.modules import CellLoss, LogLinear
from xlm.modules.records import Trace
from xlm_udlm import (
    UDLMCollator,
    UDLMDiT,
    UDLMLikelihoodCollator,
    UDLMLoss,
    UDLMMetrics,
    UDLMPredictor,
    UDLMPromptCollator,
    UDLMSampler,
)
from xlm_udlm.nelbo_udlm import UniformNELBO
from xlm_udlm.types_udlm import UDLMBatch, UDLMLossOutput, UDLMPromptBatch


def fits(
    network: UDLMDiT,
    collator: UDLMCollator,
    likelihood_collator: UDLMLikelihoodCollator,
    prompt_collator: UDLMPromptCollator,
    loss: UDLMLoss,
    bound: UniformNELBO,
    predictor: UDLMPredictor,
    loss_metrics: UDLMMetrics,
) -> None:
    _model: nn.Module = network
    _collator: Collator[UDLMBatch] = collator
    _likelihood_collator: Collator[UDLMBatch] = likelihood_collator
    _prompt_collator: Collator[UDLMPromptBatch] = prompt_collator
    _loss: Loss[UDLMBatch] = loss
    _likelihood: LikelihoodLoss[UDLMBatch] = loss
    _cell_loss: CellLoss = bound
    _predictor: Predictor[UDLMPromptBatch] = predictor
    _loss_metrics: LossMetric[UDLMLossOutput] = loss_metrics


def what_calls_give(
    network: UDLMDiT,
    batch: UDLMBatch,
    loss: UDLMLoss,
    prompts: UDLMPromptBatch,
    predictor: UDLMPredictor,
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


def misfits(collator: UDLMCollator, loss: UDLMLoss, predictor: UDLMPredictor, network: UDLMDiT) -> None:
    _other_batch: Collator[UDLMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[UDLMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[UDLMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[UDLMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[UDLMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[UDLMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums


def samplers_are_named(predictor: UDLMPredictor) -> None:
    _by_name = UDLMSampler("psi_cap", eta=0.1)
    _no_rule = UDLMSampler("best")  # pyright: ignore[reportArgumentType]  # no name of a rule
    UDLMPredictor(schedule=LogLinear(), sampler="ancestral", vocab_size=9, pad_id=0, eos_id=None)
    UDLMPredictor(schedule=LogLinear(), sampler="best", vocab_size=9, pad_id=0, eos_id=None)  # pyright: ignore[reportArgumentType]  # no name of a rule
