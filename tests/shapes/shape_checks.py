"""The checker of shape annotations for the test sessions: beartype, which leaves Protocols and Self alone.

What fits a Protocol is for the type checker to say: at run time there is only `isinstance`, which Protocols
that are not `runtime_checkable` refuse, and which would say nothing about signatures. Self has no meaning to
a checker that is given one method at a time.
"""

import typing
from collections.abc import Callable, Iterator
from typing import ParamSpec, Protocol, Self, TypeVar

from beartype import BeartypeConf, FrozenDict, beartype

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Check the annotations of a function at each call, but for what is left alone in them."""
    left_alone = [part for hint in function.__annotations__.values() for part in _left_alone(hint)]
    return beartype(conf=BeartypeConf(hint_overrides=FrozenDict(dict.fromkeys(left_alone, object))))(function)


def _left_alone(hint: object) -> Iterator[object]:
    """The Protocols, their type variables and Self in a type, however deep."""
    base = typing.get_origin(hint) or hint
    if hint is Self or (isinstance(base, type) and Protocol in base.__bases__):
        yield hint
    if isinstance(hint, TypeVar) and any(True for part in hint.__constraints__ for _ in _left_alone(part)):
        yield hint
    for part in typing.get_args(hint):
        yield from _left_alone(part)
