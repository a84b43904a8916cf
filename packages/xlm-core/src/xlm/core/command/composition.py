"""One-line explanations of Hydra's composition errors, with the remedy."""

import re
from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, DictConfig
from omegaconf.errors import OmegaConfBaseException

from xlm.core.command.arguments import what
from xlm.core.command.discovery import is_part, providers
from xlm.core.config.near import did_you_mean, listed

NOT_DELETED = re.compile(r"Could not delete from config\. '(?P<key>[^']+)' does not exist")
"""Hydra's message for ``~KEY``, also if KEY exists and its value is null."""


def explain(error: Exception, arguments: list[str]) -> str:
    """The error in one line.

    Args:
        error: An exception before the start of a job.
        arguments: The command line.
    """
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error.missing_cfg_file, error.options)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return _no_key(cause, arguments)
    reason = " ".join(str(error).split()) or type(error).__name__
    if deleted := NOT_DELETED.match(reason):
        return _not_deleted(deleted["key"], arguments)
    if reason.startswith("Ambiguous value"):
        override = next(word for word in arguments if word in reason)
        return (
            f"{override}: several values. One text: {quoted(override)}. A list: {_as_list(override)}. "
            f"A run for each: -m {override}"
        )
    return reason if isinstance(error, HydraException) else f"{type(error).__name__}: {reason}"


def _not_deleted(key: str, arguments: list[str]) -> str:
    written = next((word for word in arguments if word.startswith("~") and key in word), f"~{key}")
    return (
        f"{written}: there is no {key}, or its value is null, which Hydra cannot delete. If it exists, set "
        f"it first: {key}=0 '~{key}'"
    )


def quoted(override: str) -> str:
    """``key=value`` quoted for a shell, with the value as a text."""
    key, _, value = override.partition("=")
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return "'" + f'{key}="{value}"'.replace("'", "'\\''") + "'"


def _as_list(override: str) -> str:
    key, _, value = override.partition("=")
    return f"'{key}=[{value}]'"


def _unreadable(override: str) -> str:
    key, separator, value = override.partition("=")
    if not separator or not key.strip("+~"):
        return f"{override}: neither KEY=VALUE nor an option. xlm --help lists both"
    try:
        OverridesParser.create().parse_overrides([f'{key}="text"'])
    except OverrideParseException:
        return f"{override}: {key} is not a key: use names and dots, such as optimizer.lr"
    return (
        f"{override}: the value has special characters. Quote it for the shell and for "
        f"Hydra: {quoted(f'{key}={value}')}"
    )


def _no_option(file: str, options: object) -> str:
    """Message for a missing config, such as ``callbacks/sample``."""
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    known = {str(option) for option in options} if isinstance(options, list) else set(providers(group))
    names = sorted(option for option in known if not is_part(option))
    return f"{group}={name}: no such {what(group)}.{did_you_mean(name, known)}{listed(names, 'Known:')}"


def _no_key(cause: OmegaConfBaseException, arguments: list[str]) -> str:
    """Message for a missing key, with similar keys there or elsewhere."""
    full_key = str(cause.full_key)
    above, _, name = full_key.rpartition(".")
    written = next((word for word in arguments if word.lstrip("+~").startswith(full_key)), full_key)
    parent = cause.parent_node
    if not isinstance(parent, DictConfig):
        return f"{written}: {' '.join(str(cause.msg).split())}"
    here = [str(key) for key in parent if key != "hydra" and not str(key).startswith("_")]
    hint = did_you_mean(name, here)
    if not hint:
        # The same name elsewhere: for example lr of the optimizer, set in the schedule.
        everywhere = _dotted(parent._get_root())  # pyright: ignore[reportPrivateUsage]  # there is no public way up
        elsewhere = [key for key in everywhere if key.rpartition(".")[2] == name]
        hint = f" Did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else ""
    where = f"{above} has:" if above else "Known:"
    add = "" if written.startswith("~") else f" To add a key: +{written.lstrip('+')}."
    return f"{written}: there is no {name} in {above or 'the config'}.{hint}{add}{listed(here, where)}"


def _dotted(node: Container, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():  # pyright: ignore[reportPrivateUsage]  # there is no public method
        return
    for key in node:
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if dotted == "hydra":
            continue
        yield dotted
        child = node._get_node(key)  # pyright: ignore[reportPrivateUsage]  # unresolved
        if isinstance(child, Container):
            yield from _dotted(child, dotted)
