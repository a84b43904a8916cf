"""References between the keys of an untrusted config, resolved without OmegaConf and its resolvers.

OmegaConf resolves the result of an interpolation again, so two harmless texts can form a call of a resolver
(``monitor: $`` and ``${monitor}{oc.create:...}``). Here a text is either free of ``${`` or one whole
reference to a key of the same config, so texts cannot be combined.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml

from xlm.core.config.texts import DEEPEST, MOST

KEY = r"[A-Za-z_][\w-]*(?:\.[\w-]+)*"
REFERENCE = re.compile(rf"\$\{{({KEY})\}}")
SELECT = re.compile(rf"\$\{{oc\.select:({KEY})(?:,\s*([\w.-]*))?\}}")
"""A reference with a default; resolved here, never by OmegaConf."""
CACHE = "${datamodule.cache_dir}"
IN_CACHE = re.compile(rf"{re.escape(CACHE)}(/\w[\w.-]*)+")
"""A folder below the cache of this machine."""
LATER = re.compile(r"vocab\.\w+|datamodule\.num_proc")
"""Keys that this machine fills in, all of them numbers."""


class DanglingError(ValueError):
    """A reference that is dangling, cyclic, or too large."""


def text_problems(node: object, key: str = "") -> Iterator[str]:
    """Every text that is neither free of ``${`` nor one whole reference."""
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[object, object]", node).items():
            yield from text_problems(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from text_problems(value, f"{key}[{index}]")
    elif isinstance(node, str) and not is_plain(node):
        yield f"{key}: {node!r} is more than a reference to another key"
    elif isinstance(node, str) and "${" in node and key.rpartition(".")[2] == "_target_":
        yield f"{key}: {node!r} is not allowed"


def is_plain(text: str) -> bool:
    """Whether a text is free of ``${`` or one whole reference."""
    return "${" not in text or any(pattern.fullmatch(text) for pattern in (REFERENCE, SELECT, IN_CACHE))


def without_defaults(config: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``config`` with ``${oc.select:KEY,DEFAULT}`` replaced by ``${KEY}``, or DEFAULT if there is no KEY.

    Args:
        config: Plain values.
        root: Target of the references; None: ``config`` itself.

    Raises:
        DanglingError: If a reference on the path to KEY is dangling.
    """

    def replaced(node: object) -> Any:
        if isinstance(node, Mapping):
            return {name: replaced(value) for name, value in cast("Mapping[str, object]", node).items()}
        if isinstance(node, list):
            return [replaced(value) for value in cast("list[object]", node)]
        if isinstance(node, str) and (match := SELECT.fullmatch(node)) is not None:
            there = LATER.fullmatch(match[1]) or _is_there(root or config, match[1])
            return f"${{{match[1]}}}" if there else yaml.safe_load(match[2] or "null")
        return node

    return cast("dict[str, Any]", replaced(config))


def resolved(config: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``config`` with each reference replaced by its value; numbers of this machine are 0.

    Args:
        config: After :func:`without_defaults`. Texts that :func:`text_problems` reports are unchanged.
        root: Target of the references; None: ``config`` itself.

    Raises:
        DanglingError: If a reference is dangling, cyclic, or too large.
    """
    made = 0

    def value(node: object, depth: int) -> Any:
        nonlocal made
        made += 1
        if depth > DEEPEST or made > MOST:
            raise DanglingError("its references are cyclic or lead to an unbounded config")
        if isinstance(node, Mapping):
            return {name: value(part, depth + 1) for name, part in cast("Mapping[str, object]", node).items()}
        if isinstance(node, list):
            return [value(part, depth + 1) for part in cast("list[object]", node)]
        match = REFERENCE.fullmatch(node) if isinstance(node, str) and node != CACHE else None
        if match is None:
            return node
        return 0 if LATER.fullmatch(match[1]) else value(_find(root or config, match[1]), depth + 1)

    return cast("dict[str, Any]", value(config, 0))


def _is_there(config: Mapping[str, Any], key: str) -> bool:
    try:
        _find(config, key)
    except DanglingError:
        return False
    return True


def _find(config: Mapping[str, Any], key: str, steps: int = 0) -> object:
    """The value at ``key``, through the references on its path."""
    if steps > DEEPEST:
        raise DanglingError(f"the reference to {key} is cyclic")
    node: object = config
    for part in key.split("."):
        if isinstance(node, str) and (match := REFERENCE.fullmatch(node)) is not None:
            node = _find(config, match[1], steps + 1)
        if isinstance(node, Mapping) and part in node:
            node = cast("Mapping[str, object]", node)[part]
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(cast("list[object]", node)):
            node = cast("list[object]", node)[int(part)]
        else:
            raise DanglingError(f"it refers to {key}, which it does not have")
    return node
