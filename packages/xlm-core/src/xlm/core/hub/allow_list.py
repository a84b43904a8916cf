"""The classes and functions that a config from the Hub may name.

A package declares its own in its metadata, one entry point each; their names are those that configs use:

    [project.entry-points."xlm.classes"]
    "xlm_ilm.ILM" = "xlm_ilm.model_ilm:ILM"

Names are compared as strings before anything is imported, so a path through a module's attributes
(``xlm_ilm.model_ilm.os.system``) is not in the list. After the import, the name of the object must be the
declared one.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from xlm.core.config.errors import XLMError
from xlm.core.hub.places import place_problems
from xlm.core.hub.references import DanglingError, resolved, text_problems, without_defaults

ENTRY_POINT_GROUP = "xlm.classes"

LIBRARY_CLASSES = {
    **{
        f"torch.optim.{name}": f"torch.optim.{name.lower()}.{name}"
        for name in ("Adagrad", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
    },
    **{
        name: name
        for scheduler in (
            "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "ExponentialLR", "LinearLR",
            "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR",
        )
        for name in (f"torch.optim.lr_scheduler.{scheduler}",)
    },
    **{
        f"torchmetrics.{name}": f"torchmetrics.aggregation.{name}"
        for name in ("MaxMetric", "MeanMetric", "MinMetric", "SumMetric")
    },
    "torchmetrics.text.Perplexity": "torchmetrics.text.perplexity.Perplexity",
    "datasets.load_dataset": "datasets.load.load_dataset",
}  # fmt: skip
"""Allowed names of libraries, and the names of their objects."""

READER_ARGUMENTS = frozenset({
    "_target_", "_partial_", "path", "name", "revision", "streaming", "data_files", "sample_by",
    "encoding_errors",
})  # fmt: skip
READERS = {
    "datasets.load_dataset": READER_ARGUMENTS,
    "xlm.core.data.read_rows": READER_ARGUMENTS | {"local"},
}
"""Functions whose ``path`` may be a format, and their allowed arguments: none is an object or selects custom
code."""
FORMATS = frozenset({"csv", "json", "parquet", "text"})
"""Readers of ``datasets`` that execute nothing. Another one, ``pandas``, reads pickles."""

SPECIAL = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
"""Keys that Hydra reads itself. No declared class needs the last three."""
PLACES = ("path", "data_files", "local", "folder")
"""Keys whose values are always paths; other texts are checked individually."""
HINT = (
    "A config from elsewhere may only name classes that installed packages declare (entry points "
    "xlm.classes), and paths below the working directory. If you have read it and trust it: "
    "trust_remote_code=true"
)
FUNCTIONS = ("optimizer", "lr_scheduler", "source", "filter", "preprocess")
"""Slots that take a function, for which ``_partial_: true`` is allowed."""


def allowed_names() -> dict[str, str]:
    """Every allowed name, and the name of its object."""
    declared = {point.name: own_name(point) for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**LIBRARY_CLASSES, **declared, **{name: name for name in declared.values()}}


def own_name(point: EntryPoint) -> str:
    """``xlm_ilm.model_ilm.ILM`` for the entry point ``xlm_ilm.model_ilm:ILM``."""
    return point.value.replace(":", ".").replace(" ", "")


def declaration(own: str) -> EntryPoint | None:
    """The entry point that declares an object, None if no package does."""
    return next((point for point in entry_points(group=ENTRY_POINT_GROUP) if own_name(point) == own), None)


def check_names(config: Mapping[str, Any], origin: str) -> None:
    """Reject a config that names anything that is not allowed. Imports nothing.

    Args:
        config: The config as plain values.
        origin: Its origin, for the message.

    Raises:
        XLMError: If a name or reference is not allowed; lists every one with its key.
    """
    try:
        unresolved = any(text_problems(config))
        problems = _all_problems(config if unresolved else resolved(without_defaults(config)))
    except DanglingError as error:
        problems = [str(error)]
    _refuse(problems, f"The config of {origin}", HINT)


def check_recorded(recorded: Mapping[str, Any], composed: Mapping[str, Any], file: Path) -> None:
    """Reject the config of a run's folder if its classes are neither allowed nor on the command line.

    The folder may be from elsewhere; the config that the user has composed is trusted.

    Args:
        recorded: The config in the folder.
        composed: The config of the command line.
        file: File of the first, for the message.

    Raises:
        XLMError: If a name or reference is not allowed; lists every one with its key.
    """

    def problems(config: Mapping[str, Any]) -> list[str]:
        task = config.get("task", {})
        used = {"model": config.get("model"), "task": {key: task.get(key) for key in ("tokenizer", "source")}}
        return _all_problems(resolved(without_defaults(used, config), config))

    try:
        known = set(problems(composed))
        new = [problem for problem in problems(recorded) if problem not in known]
    except DanglingError as error:
        new = [str(error)]
    hint = "Repeat the overrides of the training, or, if you trust the run's author: trust_remote_code=true"
    _refuse(new, str(file), hint)


def _all_problems(config: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*text_problems(config), *_problems(config, "", "", allowed_names())]))


def _refuse(problems: list[str], what: str, hint: str) -> None:
    if problems:
        raise XLMError(f"{what} is rejected: {'; '.join(problems)}. {hint}")


def check_objects(config: Mapping[str, Any], origin: str) -> None:
    """Import the names of a config and check that the objects are the declared ones.

    Raises:
        XLMError: If an object is missing or has another name.
    """
    from hydra.utils import get_object

    allowed = allowed_names()
    for key, target in targets(config):
        try:
            found = get_object(target)
        except Exception as error:
            raise XLMError(f"The config of {origin} names {target} ({key}): {error}") from error
        name = f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"
        if name != allowed[target]:
            raise XLMError(f"The config of {origin} names {target} ({key}), which is {name}: rejected.")


def targets(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` below ``node`` with its key."""
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[str, object]", node).items():
            if name == "_target_":
                yield key, str(value)
            yield from targets(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from targets(value, f"{key}[{index}]")


def _problems(node: object, key: str, name: str, allowed: Mapping[str, str]) -> Iterator[str]:
    """Problems below ``key``, whose last part is ``name``; all values are resolved."""
    if isinstance(node, Mapping):
        yield from _mapping_problems(cast("Mapping[object, object]", node), key, name, allowed)
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from _problems(value, f"{key}[{index}]", "", allowed)
    elif isinstance(node, str):
        yield from place_problems(name, node, key, frozenset())
    elif node is not None and not isinstance(node, bool | int | float):
        yield f"{key}: a {type(node).__name__} is not a plain value"


def _mapping_problems(
    node: Mapping[object, object], key: str, name: str, allowed: Mapping[str, str]
) -> Iterator[str]:
    if "_target_" in node:
        yield from _target_problems(node, key, allowed)
    formats = FORMATS if str(node.get("_target_")) in READERS else frozenset[str]()
    for part, value in node.items():
        inner = f"{key}.{part}".lstrip(".")
        if not isinstance(part, str):
            yield f"{key}: the key {part!r} is not a text"
        elif part in SPECIAL:
            yield from _special_problems(part, value, key, name)
        else:
            if part in PLACES:
                yield from place_problems(part, value, inner, formats)
            if part not in PLACES or not isinstance(value, str):  # files by split may be nodes too
                yield from _problems(value, inner, part, allowed)


def _special_problems(part: str, value: object, key: str, name: str) -> Iterator[str]:
    """Problems of a key that Hydra reads itself; ``_target_`` is checked elsewhere."""
    if part == "_partial_":
        if not isinstance(value, bool) or (value and name not in FUNCTIONS):
            yield f"{key}._partial_: {value!r} is only for slots that take a function: {', '.join(FUNCTIONS)}"
    elif part != "_target_":
        yield f"{key}: {part} is not allowed"


def _target_problems(node: Mapping[object, object], key: str, allowed: Mapping[str, str]) -> Iterator[str]:
    target = node["_target_"]
    if not isinstance(target, str) or target not in allowed:
        yield f"{key}._target_: {target!r} is not allowed"
    elif target in READERS:
        if extra := sorted(str(name) for name in node if name not in READERS[target]):
            yield f"{key}: {target} with {', '.join(extra)} is not allowed"
        if "path" not in node:
            yield f"{key}: {target} without a path is not allowed"
