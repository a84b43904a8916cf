"""Fillings that do not fit their slots, each in one way."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from toy_family import ToyBatch, ToyLoss, ToyLossOutput, ToyPrediction


class FloatLoss:
    def __call__(self, model: nn.Module, batch: ToyBatch) -> Any:
        return ToyLossOutput(1.0, torch.tensor(1), {})  # pyright: ignore[reportArgumentType]  # the misfit


class FloatTerm(ToyLoss):
    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        return replace(super().__call__(model, batch), terms={"token": 1.0})


class TensorLoss:
    def __call__(self, model: nn.Module, batch: ToyBatch) -> Tensor:
        return torch.tensor(1.0)


class NanLoss(ToyLoss):
    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        output = super().__call__(model, batch)
        return replace(output, loss_sum=output.loss_sum * torch.nan)


class DetachedLoss(ToyLoss):
    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        output = super().__call__(model, batch)
        return replace(output, loss_sum=output.loss_sum.detach())


class NoLikelihood:
    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        return ToyLoss()(model, batch)


class BrokenPredictor:
    def __call__(self, model: nn.Module, batch: Any, seeds: Tensor, *, trace: bool = False) -> ToyPrediction:
        return batch["positions"]


class EndlessPredictor:
    """Would call the network endlessly; in training it raises instead."""

    evaluations_in_the_check: ClassVar[int] = 0

    def __call__(
        self, model: nn.Module, batch: ToyBatch, seeds: Tensor, *, trace: bool = False
    ) -> ToyPrediction:
        for evaluation in range(1000):
            if not trace and evaluation == 10:
                raise TimeoutError
            if trace:
                type(self).evaluations_in_the_check += 1
            model(batch["target_ids"])
        raise AssertionError


class BrokenCollator:
    def __call__(self, examples: Sequence[Any]) -> ToyBatch:
        return examples[1000]
