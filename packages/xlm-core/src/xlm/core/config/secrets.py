"""Keeps tokens and passwords out of what is written."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

SECRET_NAME = re.compile(r"(^|_)(token|password|passwd|secret|api_?key|credentials?)$", re.IGNORECASE)
MASK = "(hidden)"
SHORTEST = 8
"""Characters from which a value of the environment counts as a secret; shorter ones occur by chance."""


def hide(node: Any) -> Any:
    """A copy of a config without secrets.

    Hidden are strings under keys such as ``token`` or ``api_key``, unless they refer to the environment
    (``${oc.env:HF_TOKEN}``), and the values of such variables wherever they occur.
    """
    values = {
        value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST
    }
    return _hide(node, values)


def _hide(node: Any, values: set[str]) -> Any:
    if isinstance(node, Mapping):
        entries = cast("Mapping[str, Any]", node).items()
        return {key: MASK if _is_secret(key, value) else _hide(value, values) for key, value in entries}
    if isinstance(node, str):
        for value in values:
            node = node.replace(value, MASK)
        return node
    if isinstance(node, Sequence):
        return [_hide(value, values) for value in cast("Sequence[Any]", node)]
    return node


def _is_secret(key: object, value: object) -> bool:
    named = isinstance(key, str) and SECRET_NAME.search(key) is not None
    return named and isinstance(value, str) and not value.startswith("${")
