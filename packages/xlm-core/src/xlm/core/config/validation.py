"""Messages for the errors that pydantic finds in a config."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean

HINTS = {
    "job_name": "Name the run: job_name=my_run (it becomes the folder of the run).",
    "task": "Choose an experiment (experiment=NAME) or a data set (task=NAME).",
    "model": "Choose an experiment (experiment=NAME) or a network (model=NAME).",
    "loss": "Choose an experiment (experiment=NAME) or a family (model_type=NAME).",
    "predictor": "Choose an experiment (experiment=NAME) or a family (model_type=NAME).",
    "datamodule": "Choose an experiment (experiment=NAME) or loaders (datamodule=NAME).",
}


ModelT = TypeVar("ModelT", bound=BaseModel)


def validated(model: type[ModelT], config: Mapping[str, Any]) -> ModelT:
    """Check plain values against a schema.

    Raises:
        XLMError: If a key is wrong; names every one, its value and what is allowed.
    """
    try:
        return model.model_validate(config)
    except ValidationError as error:
        lines = describe(error.errors(), config, model)
        raise XLMError("\n".join(["The config is not valid:", *lines])) from None


def describe(errors: Sequence[ErrorDetails], config: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """One line per wrong key: its value and what is allowed.

    Args:
        errors: Errors of pydantic; one for each branch of a union.
        config: The checked config.
        model: Its schema.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        key = ".".join(str(part) for part in error["loc"] if _is_key(part)) or "(whole config)"
        by_key.setdefault(key, []).append(error)
    # Keys that refer to each other are wrong together: print each reason once.
    keys: dict[str, list[str]] = {}
    for key, found in by_key.items():
        keys.setdefault(_describe(key, found, [*_beside(key, config), *_fields(key, model)]), []).append(key)
    return [f"  {', '.join(same)}: {reason}" for reason, same in keys.items()]


def _describe(key: str, errors: Sequence[ErrorDetails], known: Sequence[str]) -> str:
    first, found = errors[0], errors[0]["input"]
    message = ", or ".join(dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in errors))
    if first["type"] == "missing":
        return _missing(key)
    if first["type"] == "extra_forbidden":
        return f"unknown key.{did_you_mean(key.rpartition('.')[2], dict.fromkeys(known))}"
    if isinstance(found, Mapping):
        return message
    if found is None:
        return _missing(key)
    hint = ""
    if any(error["type"] == "string_type" for error in errors) and isinstance(found, int | float):
        text = str(found).lower() if isinstance(found, bool) else str(found)
        hint = f" Quoted for the shell and for Hydra it is a text: '{key}=\"{text}\"'."
    elif any(error["type"] == "int_type" for error in errors) and isinstance(found, float):
        hint = " Write it without a point or an exponent."
    return f"got {found!r}. {message}.{hint}"


def _beside(key: str, config: Mapping[str, Any]) -> list[str]:
    """The keys beside ``key`` in the config."""
    node: Any = config
    *above, last = key.split(".")
    for part in above:
        node = cast("Mapping[str, Any]", node).get(part, {}) if isinstance(node, Mapping) else {}
    return [name for name in node if name != last] if isinstance(node, Mapping) else []


def _fields(key: str, model: type[BaseModel]) -> list[str]:
    """The keys beside ``key`` in the schema, including those with a default that no config has."""
    for part in key.split(".")[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (
            inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return list(model.model_fields)


def _is_key(part: int | str) -> bool:
    """Whether a part of an error's location is a key, not pydantic's name for a branch of a union."""
    names = {"str", "int", "float", "dict"}
    return not (isinstance(part, str) and ("[" in part or part.removeprefix("constrained-") in names))


def describe_missing(key: str, hint: str | None = None) -> str:
    """One line for a key without a value, with the remedy."""
    return f"  {key}: {_missing(key, hint)}"


def _missing(key: str, hint: str | None = None) -> str:
    return f"missing. {hint or HINTS.get(key, f'Set it: {key}=VALUE.')}"
