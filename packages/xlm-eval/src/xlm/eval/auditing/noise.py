"""Where random numbers of too few bits decide which token is drawn."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

UNIFORM = {"rand", "rand_like", "uniform", "uniform_"}
EXPONENTIAL = {"exponential", "exponential_"}
LOGARITHM = {"log", "log_", "log2", "log1p", "log1p_"}


class CoarseNoise(TorchDispatchMode):
    """Watches the operations of a sampler for logarithms of uniform numbers below float64.

    A uniform float32 number is a multiple of 2^-24, so -log(-log u) is at most 16.6: by a Gumbel maximum,
    tokens of a probability below about 6e-8 are never drawn, and the temperature is in effect lower than the
    one that is set (Zheng et al. 2024, arXiv:2409.02908). A cast to float64 after the draw does not help.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None
        """The operation and the type of its noise."""
        self._coarse: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and mark its result if it is coarse noise or depends on some."""
        result = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", func)).partition(".")[0]
        inputs = [each for each in args if isinstance(each, Tensor)]
        if name in EXPONENTIAL and isinstance(result, Tensor) and result.dtype != torch.float64:
            self.found = f"{name} of {result.dtype}"
        marks = [self._coarse[each] for each in inputs if each in self._coarse]
        if name in UNIFORM and isinstance(result, Tensor) and result.dtype != torch.float64:
            marks = [str(result.dtype)]
        if marks and name in LOGARITHM:
            self.found = f"{name} of uniform numbers of {marks[0]}"
        if marks and isinstance(result, Tensor) and result.is_floating_point():
            self._coarse[result] = marks[0]
        return result


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """torch's global generator with a seed, restored afterwards."""
    with torch.random.fork_rng(devices=cast("list[int]", [])):
        torch.manual_seed(seed)
        yield
