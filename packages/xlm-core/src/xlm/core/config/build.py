"""Instantiation of config nodes."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import hydra.errors
import hydra.utils

from xlm.core.config.errors import XLMError
from xlm.core.config.signatures import check_values
from xlm.core.config.targets import explain, locate


def make(node: Mapping[str, Any], key: str) -> Any:
    """Instantiate a node.

    Args:
        node: Plain values with a ``_target_`` and without references.
        key: Key of the node in the config, for messages.

    Raises:
        XLMError: If the class cannot be imported or does not accept these arguments; names key and class.
    """
    _check_resolved(node, key)
    _check_values(key, node)
    if node.get("_partial_") and (mistake := explain(key, node)) is not None:
        raise XLMError(f"{key}: could not make {node['_target_']}.\n  {mistake}")  # it is called later
    try:
        made = hydra.utils.instantiate(dict(node), _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, XLMError):
            raise XLMError(f"{key}: {cause}") from error
        reason = (
            str(cause)
            if isinstance(cause, hydra.errors.HydraException)
            else f"{type(cause).__name__}: {cause}"
        )
        reason = explain(key, node) or reason
        raise XLMError(f"{key}: could not make {node['_target_']}.\n  {reason}") from error
    if isinstance(made, functools.partial):
        # Hydra's own partial checks its target policy at each call: 0.6 ms per row of a data set.
        return functools.partial(made.func, *made.args, **made.keywords)
    return made


def make_all(nodes: Mapping[str, Mapping[str, Any] | None], key: str) -> dict[str, Any]:
    """Instantiate every node below ``key`` that is not null."""
    return {name: make(node, f"{key}.{name}") for name, node in nodes.items() if node is not None}


def _check_resolved(node: object, key: str) -> None:
    """Reject a text with a reference.

    Hydra resolves the nodes that it instantiates. A text in which a reference appears only after the config
    was resolved would be resolved a second time, and could call a resolver that the checks have not seen.
    """
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[str, object]", node).items():
            _check_resolved(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            _check_resolved(value, f"{key}[{index}]")
    elif isinstance(node, str) and "${" in node:
        raise XLMError(f"{key}: a text that turns into a reference (${{...}}) is not resolved again")


def _check_values(key: str, node: Mapping[str, Any]) -> None:
    """Compare the values of a node and of its inner nodes with the signatures of their targets."""
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_values(f"{key}.{name}", cast("Mapping[str, Any]", value))
    if isinstance(found := locate(str(node["_target_"])), tuple):
        check_values(key, found[0], node)
