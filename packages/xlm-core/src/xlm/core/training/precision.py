"""bfloat16 and float16 weights: only parameters are cast; losses and schedules keep their dtype.

Lightning's plugin also casts every float of a batch (times, weights) and every buffer, and sets half
precision as the default dtype while a loss runs, so that a schedule is computed with 8 bits of mantissa. Here
networks return the dtype of their weights; losses and samplers widen it.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn
from typing_extensions import override


class HalfWeights(HalfPrecision):
    """``bf16-true`` and ``16-true``: parameters, gradients and optimizer state have half precision."""

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
