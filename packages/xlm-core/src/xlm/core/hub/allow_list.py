"""Which classes and functions a config that comes from the Hub may name.

A package declares its own in its metadata, one entry point each; their names are those that configs use:

    [project.entry-points."xlm.classes"]
    "xlm_ilm.ILM" = "xlm_ilm.model_ilm:ILM"

Names are compared as strings before anything is imported, so a name that walks through a module's attributes
(``xlm_ilm.model_ilm.os.system``) is simply not in the list. After the import, the object has to call itself
by the name that was declared.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from xlm.core.config.errors import XLMError

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
"""Names of libraries that are allowed as well, and what the objects call themselves."""

LOAD_DATASET_ARGUMENTS = {
    "_target_", "_partial_", "path", "name", "revision", "streaming", "data_files", "sample_by",
    "encoding_errors",
}  # fmt: skip
"""Of ``datasets.load_dataset``; none of them is an object or reaches a reader's own loader."""
FORMATS = {"csv", "json", "parquet", "text"}
"""Readers that come with ``datasets`` and run nothing. Another one, ``pandas``, reads pickles."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REFERENCE = re.compile(r"\$\{(?:oc\.select:)?[\w.]+(?:,\s*[\w.-]+)?\}")
"""What may stand in a text of the config: a reference to another key, with a default. Other resolvers read
the environment or run functions."""


def allowed_names() -> dict[str, str]:
    """Every allowed name, and the name that its object gives itself."""
    declared = {point.name: own_name(point) for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**LIBRARY_CLASSES, **declared, **{name: name for name in declared.values()}}


def own_name(point: EntryPoint) -> str:
    """``xlm_ilm.model_ilm.ILM`` for the entry point ``xlm_ilm.model_ilm:ILM``."""
    return point.value.replace(":", ".").replace(" ", "")


def declaration(own: str) -> EntryPoint | None:
    """The entry point that declares an object, None if no package does."""
    return next((point for point in entry_points(group=ENTRY_POINT_GROUP) if own_name(point) == own), None)


def check_names(config: Mapping[str, Any], origin: str) -> None:
    """Refuse a config that names anything which is not allowed. Imports nothing.

    Args:
        config: The config as plain values.
        origin: Where it comes from, for the message.

    Raises:
        XLMError: With every name and reference that is refused, and where it stands.
    """
    if problems := list(_problems(config, "", allowed_names())):
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise XLMError(
            f"The config of {origin} is refused:\n{lines}\n"
            "A config from the Hub may only name what installed packages declare (entry points xlm.classes). "
            "If you have read it and trust it: trust_remote_code=true"
        )


def check_objects(config: Mapping[str, Any], origin: str) -> None:
    """Import what the config names and check that the objects are the declared ones.

    Raises:
        XLMError: When an object is not there or calls itself by another name.
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
            raise XLMError(f"The config of {origin} names {target} ({key}), which is {name}: refused.")


def targets(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every ``_target_`` below ``node`` with the key where it stands."""
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[str, object]", node).items():
            if name == "_target_":
                yield key, str(value)
            yield from targets(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from targets(value, f"{key}[{index}]")


def _problems(node: object, key: str, allowed: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, Mapping):
        content = cast("Mapping[object, object]", node)
        if "_target_" in content:
            yield from _target_problems(content, key, allowed)
        yield from _file_problems(content.get("data_files"), f"{key}.data_files".lstrip("."))
        for name, value in content.items():
            if not isinstance(name, str):
                yield f"{key}: the key {name!r} is no text"
            elif name != "_target_":
                yield from _problems(value, f"{key}.{name}".lstrip("."), allowed)
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from _problems(value, f"{key}[{index}]", allowed)
    elif isinstance(node, str):
        if "${" in REFERENCE.sub("", node):
            yield f"{key}: {node!r} is more than a reference to another key"
    elif node is not None and not isinstance(node, bool | int | float):
        yield f"{key}: a {type(node).__name__} is no plain value"


def _target_problems(node: Mapping[object, object], key: str, allowed: Mapping[str, str]) -> Iterator[str]:
    target = node["_target_"]
    if not isinstance(target, str) or target not in allowed:
        yield f"{key}._target_: {target!r} is not allowed"
        return
    formats: set[str] = set()
    if target == "datasets.load_dataset":
        if extra := sorted(str(name) for name in node if name not in LOAD_DATASET_ARGUMENTS):
            yield f"{key}: datasets.load_dataset with {', '.join(extra)} is not allowed"
        formats = FORMATS
    elif "path" not in node:
        return
    # Functions of tasks hand it on to datasets.load_dataset, which takes folders and builders as well.
    path = node.get("path")
    if not isinstance(path, str) or not (path in formats or REPOSITORY.fullmatch(path)):
        allowed_formats = "".join(f" or {name}" for name in sorted(formats))
        yield f"{key}.path: {path!r} is no repository of the Hub (USER/NAME){allowed_formats}"


def _file_problems(node: object, key: str) -> Iterator[str]:
    """Patterns of data files: below the working directory, or in the repository that ``path`` names."""
    if isinstance(node, Mapping):
        for name, value in cast("Mapping[object, object]", node).items():
            yield from _file_problems(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(cast("list[object]", node)):
            yield from _file_problems(value, f"{key}[{index}]")
    elif node is not None and not (isinstance(node, str) and is_relative(node)):
        yield f"{key}: {node!r} is no pattern of files below the working directory"


def is_relative(pattern: str) -> bool:
    """Whether a pattern names files below where it starts, by itself: no address, no reference, no way up."""
    return not (
        {":", "\\", "$"} & set(pattern) or pattern.startswith(("/", "~")) or ".." in pattern.split("/")
    )
