"""Explains why a node could not be instantiated, and what to type instead."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from xlm.core.config.near import did_you_mean

GROUPS = ("model", "optimizer", "lr_scheduler")
"""Nodes that are config groups: ``~optimizer`` selects none, and keeps the keys that an experiment sets."""


def explain(key: str, node: Mapping[str, Any]) -> str | None:
    """Find the common mistakes of a node that Hydra could not instantiate: its name, or surplus arguments.

    Args:
        key: Key of the node in the config.
        node: The node, with its ``_target_``.

    Returns:
        A message, None for another cause.
    """
    target = str(node["_target_"])
    found = locate(target)
    return found if isinstance(found, str) else _left_over(key, target, found[0], node)


def locate(target: str) -> str | tuple[Any]:
    """The object of a dotted name in a tuple, or the error in the name."""
    parts = target.split(".")
    for number in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:number])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            return f"{name} cannot be imported: {error}"
        except Exception as error:  # noqa: BLE001  # an import can raise anything
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
        return _attribute(found, parts[number:])
    return f"there is no module {parts[0]} (looked in the installed packages and in the working directory)"


def _attribute(found: Any, names: list[str]) -> str | tuple[Any]:
    for name in names:
        if not hasattr(found, name):
            where = getattr(found, "__file__", None)
            hint = did_you_mean(name, dir(found), most=1)
            return f"there is no {name} in {found.__name__}{f' ({where})' if where else ''}.{hint}"
        found = getattr(found, name)
    return (found,)


def _left_over(key: str, target: str, filling: Any, node: Mapping[str, Any]) -> str | None:
    try:
        parameters = inspect.signature(filling).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    left = [name for name in node if not str(name).startswith("_") and name not in parameters]
    if not left:
        return None
    drop = " ".join(f"'~{key}.{name}'" for name in left)
    taken = ", ".join(parameters) or "no arguments"
    near = did_you_mean(left[0], parameters)
    message = (
        f"{target} takes {taken}, not {', '.join(left)}.{near}\n"
        f"  Drop the arguments of the previous class: {drop}"
    )
    if key in GROUPS:
        return message
    return f"{message}\n  or replace the whole node: '~{key}' '+{key}={{_target_: {target}}}'"
