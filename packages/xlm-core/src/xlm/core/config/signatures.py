"""Checks the plain values of a node against the annotations of its target before the call.

Classes rarely check the types of their arguments: ``true`` counts as 1, and a text or NaN fails in the middle
of training. Values that a config can hold (numbers, texts, lists, mappings) are compared with the annotation;
other annotations are left to the class.
"""

import inspect
import math
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from xlm.core.config.errors import XLMError

PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (list, tuple, dict, Sequence, Iterable, Collection, Mapping)


def check_values(key: str, target: Any, node: Mapping[str, Any]) -> None:
    """Compare the values of a node with the signature of its target.

    Args:
        key: Key of the node in the config.
        target: The class or function.
        node: Its arguments, resolved.

    Raises:
        XLMError: If a value has another type; names the key of the first, and the expected type.
    """
    hints = _hints(target)
    for name, value in node.items():
        if name in hints and not str(name).startswith("_"):
            annotation, default = hints[name]
            if not (value is None and default is None) and not fits(value, annotation):
                raise XLMError(
                    f"{key}.{name}: got {value!r}. {node['_target_']} takes {_words(annotation)} here."
                )


def _hints(target: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each argument, if available."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        found = get_type_hints(function)
        parameters = inspect.signature(function).parameters
    except (
        NameError,
        TypeError,
        ValueError,
        AttributeError,
        SyntaxError,
    ):  # names that only a type checker imports
        return {}
    return {name: (found[name], p.default) for name, p in parameters.items() if name in found}


def fits(value: object, annotation: Any) -> bool:
    """Whether a plain value matches the annotation; true is not a number, NaN never matches."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(value, float) and math.isnan(value):
        return False
    if isinstance(value, Mapping) and "_target_" in value:  # an object, instantiated before
        return True
    if origin in (Union, types.UnionType):
        if any(part in PLAIN for part in arguments):  # float | Tensor: a config holds no tensor
            arguments = tuple(part for part in arguments if not _is_class(part))
        return any(fits(value, part) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in arguments)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if not (inspect.isclass(origin) and arguments):
        return True
    return _contents_fit(value, origin, arguments)


def _is_class(annotation: Any) -> bool:
    """Whether it is a class that no plain value has, such as a tensor."""
    return (
        inspect.isclass(annotation) and annotation not in (*PLAIN, *CONTAINERS) and not get_args(annotation)
    )


def _contents_fit(value: object, origin: type, arguments: tuple[Any, ...]) -> bool:
    if issubclass(origin, tuple):
        if not isinstance(value, list | tuple):
            return False
        items = cast("list[object]", list(value))
        if arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in items)
        return len(items) == len(arguments) and all(map(fits, items, arguments))
    if issubclass(origin, Mapping):
        items = cast("Mapping[object, object]", value)
        return isinstance(value, Mapping) and all(fits(item, arguments[-1]) for item in items.values())
    if hasattr(origin, "__iter__") and len(arguments) == 1:
        if isinstance(value, str):  # also a sequence, of texts
            return fits(value, arguments[0])
        return isinstance(value, list) and all(fits(i, arguments[0]) for i in cast("list[object]", value))
    return True


def _words(annotation: Any) -> str:
    """The annotation as written."""
    text = (
        annotation.__name__ if inspect.isclass(annotation) and not get_args(annotation) else str(annotation)
    )
    return text.replace("typing.", "").replace("NoneType", "None").replace("collections.abc.", "")
