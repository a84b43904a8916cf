"""A node of the config made into the object that it describes."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import hydra.errors
import hydra.utils
from omegaconf import DictConfig, OmegaConf

from xlm.core.config.errors import XLMError
from xlm.core.config.signatures import check_values
from xlm.core.config.targets import explain, locate


def make(config: DictConfig, key: str) -> Any:
    """Make the object of the node at ``key``.

    Raises:
        XLMError: When the class cannot be imported or does not take these arguments; names key and class.
    """
    node = plain_node(config, key)
    _check_values(key, node)
    if node.get("_partial_") and (mistake := explain(key, node)) is not None:
        raise XLMError(f"{key}: could not make {node['_target_']}.\n  {mistake}")  # called only later
    try:
        made = hydra.utils.instantiate(node, _convert_="all")
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
        # Hydra's own partial asks its target policy again at each call: 0.6 ms for each row of a data set.
        return functools.partial(made.func, *made.args, **made.keywords)
    return made


def _check_values(key: str, node: Mapping[str, Any]) -> None:
    """Compare the values of a node, and of the nodes within it, with the signatures of what they name."""
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_values(f"{key}.{name}", cast("Mapping[str, Any]", value))
    if isinstance(found := locate(str(node["_target_"])), tuple):
        check_values(key, found[0], node)


def plain_node(config: DictConfig, key: str) -> dict[str, Any]:
    """The node at ``key`` as plain values, resolved once.

    Hydra resolves what it instantiates, so a text in which a reference appears only now would be resolved a
    second time, and could call what the first look at the config did not show.

    Raises:
        XLMError: When there is such a text.
    """
    node = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    if (found := _reference(node, key)) is not None:
        raise XLMError(f"{found}: a text that turns into a reference (${{...}}) is not resolved again")
    return cast("dict[str, Any]", node)


def _reference(node: object, key: str) -> str | None:
    """The first key below ``key`` whose text holds a reference."""
    if isinstance(node, dict):
        parts = cast("dict[str, object]", node).items()
        return next(filter(None, (_reference(value, f"{key}.{name}") for name, value in parts)), None)
    if isinstance(node, list):
        parts = enumerate(cast("list[object]", node))
        return next(filter(None, (_reference(value, f"{key}[{index}]") for index, value in parts)), None)
    return key if isinstance(node, str) and "${" in node else None


def make_all(config: DictConfig, key: str) -> dict[str, Any]:
    """Make every object below ``key`` that is not switched off with null."""
    nodes = OmegaConf.select(config, key) or {}
    return {name: make(config, f"{key}.{name}") for name in nodes if nodes[name] is not None}
