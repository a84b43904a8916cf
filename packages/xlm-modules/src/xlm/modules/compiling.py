"""What torch.compile leaves alone."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

# The public torch.compiler.disable imports the compiler, which takes longer than torch itself.
from torch._compile import _disable_dynamo  # pyright: ignore[reportPrivateUsage]

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")


def uncompiled(function: Callable[_Arguments, _Found]) -> Callable[_Arguments, _Found]:
    """A function that torch.compile leaves alone; where nothing is compiled, the compiler is not imported."""
    disabled = _disable_dynamo(function)

    @wraps(function)
    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Found:
        chosen = disabled if "torch._dynamo" in sys.modules else function
        return chosen(*arguments, **named)

    return call
