"""bfloat16 and float16 weights, with everything else as precise as its author wrote it.

Lightning's plugin also casts every float of a batch (times, weights) and every buffer, and makes half the
default dtype while a loss runs, so that a schedule is computed in 8 bits of mantissa. Here the weights alone
are cast; networks answer in the dtype of their weights, losses and samplers widen it.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn
from typing_extensions import override


class HalfWeights(HalfPrecision):
    """``bf16-true`` and ``16-true``: parameters, their gradients and the optimizer's state are half."""

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(self._desired_input_dtype)
        return module

    @override
    def tensor_init_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    @contextmanager
    def forward_context(self) -> Generator[None]:
        yield

    @override
    def convert_input(self, data: Any) -> Any:
        return data
