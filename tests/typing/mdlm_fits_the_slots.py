"""Read by the type checker, never run: each part of xlm-mdlm fits its slot, and what does not fit is refused.

The lines with an ignore must not check; the checker reports an ignore that is no longer needed.
"""

import torch
from torch import Tensor, nn

from xlm.core.protocols import Collator, LikelihoodLoss, Loss, LossMetric, Predictor
from xlm.modules import Cosine, LogLinear, NoiseSchedule
from xlm.modules.records import Trace
from xlm.modules.samplers import Budget, Confident, Quota, Random, Rank, Sampler, compose
from xlm_mdlm import (
    MDLMCollator,
    MDLMDiT,
    MDLMLikelihoodCollator,
    MDLMLoss,
    MDLMMetrics,
    MDLMPredictor,
    MDLMPromptCollator,
    MDLMRotary,
)
from xlm_mdlm.types_mdlm import MDLMBatch, MDLMLossOutput, MDLMPromptBatch


def fits(
    networks: MDLMRotary | MDLMDiT,
    collator: MDLMCollator,
    likelihood_collator: MDLMLikelihoodCollator,
    prompt_collator: MDLMPromptCollator,
    loss: MDLMLoss,
    predictor: MDLMPredictor,
    loss_metrics: MDLMMetrics,
) -> None:
    _model: nn.Module = networks
    _collator: Collator[MDLMBatch] = collator
    _likelihood_collator: Collator[MDLMBatch] = likelihood_collator
    _prompt_collator: Collator[MDLMPromptBatch] = prompt_collator
    _loss: Loss[MDLMBatch] = loss
    _likelihood: LikelihoodLoss[MDLMBatch] = loss
    _predictor: Predictor[MDLMPromptBatch] = predictor
    _loss_metrics: LossMetric[MDLMLossOutput] = loss_metrics


def what_calls_give(
    network: MDLMRotary | MDLMDiT,
    batch: MDLMBatch,
    loss: MDLMLoss,
    prompts: MDLMPromptBatch,
    predictor: MDLMPredictor,
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


def misfits(collator: MDLMCollator, loss: MDLMLoss, predictor: MDLMPredictor, network: MDLMRotary) -> None:
    _other_batch: Collator[MDLMPromptBatch] = collator  # pyright: ignore[reportAssignmentType]  # makes another batch
    _other_loss: Loss[MDLMPromptBatch] = loss  # pyright: ignore[reportAssignmentType]  # reads another batch
    _no_loss: Loss[MDLMBatch] = predictor  # pyright: ignore[reportAssignmentType]  # needs seeds
    _no_predictor: Predictor[MDLMBatch] = loss  # pyright: ignore[reportAssignmentType]  # takes no seeds
    _no_likelihood: LikelihoodLoss[MDLMBatch] = network  # pyright: ignore[reportAssignmentType]  # has none
    _no_metric: LossMetric[MDLMLossOutput] = loss  # pyright: ignore[reportAssignmentType]  # has no sums


class OwnSchedule:
    """Inherits nothing and fits."""

    is_complete = True

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha

    def loss_weight(self, t: Tensor) -> Tensor:
        return 1 / t


def schedules_and_samplers_fit(own: OwnSchedule) -> None:
    _schedules: list[NoiseSchedule] = [LogLinear(), Cosine(), own]
    _samplers: list[Sampler] = [compose("klass"), Sampler(Confident("margin"), Budget(0.1))]
    _rank: Rank = Random()
    _quota: Quota = Budget(0.1)
    _no_rule = compose("best")  # pyright: ignore[reportArgumentType]  # no name of a rule
    _no_sampler: Sampler = own  # pyright: ignore[reportAssignmentType]  # another class
    _no_schedule: NoiseSchedule = compose("ancestral")  # pyright: ignore[reportAssignmentType]  # has no alpha
