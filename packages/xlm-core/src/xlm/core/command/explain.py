"""``xlm ... --cfg explained``: the composed config with the meaning, default and file of each key."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from xlm.core.command.discovery import config_packages
from xlm.core.config.meanings import argument_defaults, argument_meanings, comment_at, field_meanings
from xlm.core.config.schema import RunSettings

WIDTH = 88
"""Width of the text in columns."""
COMMAND_LINE = "command line"


@dataclass
class Place:
    """Origin of the value of a key."""

    file: str
    """The last file that sets it."""
    comment: str
    """The first comment beside it."""
    default: str | None = None
    """Value in an earlier file, if a later one changes it."""


def explanation(config: DictConfig) -> str:
    """The text for a composed config, inside of Hydra's job."""
    content = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=False))
    overrides = list(HydraConfig.get().overrides.task)
    loader = GlobalHydra.instance().config_loader()
    places = _places(loader.compute_defaults_list("config", overrides, RunMode.RUN).defaults)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        _set(places, key, COMMAND_LINE, "", value)
    return "\n".join(_lines(content, places))


def _set(places: dict[str, tuple[Place, str]], key: str, file: str, comment: str, value: str) -> None:
    """Record that ``file`` sets ``key``."""
    if key not in places:
        places[key] = Place(file, comment), value
        return
    place, first = places[key]
    places[key] = Place(file, place.comment or comment, first), first


def _lines(content: Mapping[str, Any], places: Mapping[str, tuple[Place, str]]) -> Iterator[str]:
    known = dict(_schema(RunSettings, content, ""))
    for key, value, target in _leaves(content, "", None):
        above, _, name = key.rpartition(".")
        place = _place(key, places)
        comment = place.comment if place else ""
        meaning, default = known.get(key, ("", None))
        if target is not None:
            meaning = comment or argument_meanings(target).get(name, "")
            default = argument_defaults(target).get(name)
        if not name.startswith("_"):
            meaning = meaning or comment or known.get(above, ("", None))[0]
        yield from _entry(key, value, meaning, default or (place.default if place else None), place)


def _entry(key: str, value: object, meaning: str, default: object, place: Place | None) -> Iterator[str]:
    shown = _yaml(value)
    yield from textwrap.wrap(
        f"{key}: {shown}", WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
    origin = [] if default is None else [f"default {default}"]
    origin += [place.file] if place else []
    for text in (meaning, "; ".join(origin)):
        yield from textwrap.wrap(
            text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )


def _leaves(
    node: Mapping[str, Any], prefix: str, target: str | None
) -> Iterator[tuple[str, Any, str | None]]:
    """Each key with a plain value, that value, and the class whose argument it is."""
    target = node.get("_target_", target)
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            inner = cast("Mapping[str, Any]", value)
            yield from _leaves(inner, f"{key}.", target if "_target_" not in inner else None)
        else:
            yield key, value, None if name.startswith("_") else target


def _schema(
    model: type[BaseModel], node: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Meaning and default of each key of ``node`` that the harness itself reads."""
    texts = field_meanings().get(model.__name__, {})
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        value = node.get(name)
        default = None if field.is_required() else _yaml(field.default)
        yield f"{prefix}{name}", (texts.get(attribute, ""), default)
        if not isinstance(value, Mapping):
            continue
        inner = cast("Mapping[str, Any]", value)
        by_name = get_origin(field.annotation) is dict
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                for below, prefix_below in (
                    [(v, f"{prefix}{name}.{k}.") for k, v in inner.items()]
                    if by_name
                    else [(inner, f"{prefix}{name}.")]
                ):
                    if isinstance(below, Mapping):
                        yield from _schema(part, cast("Mapping[str, Any]", below), prefix_below)


def _place(key: str, places: Mapping[str, tuple[Place, str]]) -> Place | None:
    """The origin of a key, or of the nearest node above it that is set as a whole."""
    while key not in places and "." in key:
        key = key.rpartition(".")[0]
    return places[key][0] if key in places else None


def _places(defaults: list[ResultDefault]) -> dict[str, tuple[Place, str]]:
    """The last file that sets each key, in the order in which Hydra merges them."""
    folders = [(package.distribution, package.folder) for package in config_packages() if package.folder]
    places: dict[str, tuple[Place, str]] = {}
    for default in defaults:
        for distribution, folder in folders:
            file = Path(folder, f"{default.config_path}.yaml")
            if default.config_path is not None and file.is_file():
                text = file.read_text("utf-8")
                root = yaml.compose(text, Loader=yaml.SafeLoader)
                prefix = f"{default.package}." if default.package not in (None, "", "_global_") else ""
                shown = f"{distribution}: {default.config_path}.yaml"
                if isinstance(root, yaml.MappingNode):
                    for key, beside, value in _keys(root, prefix, text.splitlines()):
                        _set(places, key, shown, beside, value)
                break
    return places


def _keys(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Each key of a file, its comment and its value as written."""
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _keys(value, f"{path}.", lines)
        else:
            written = yaml.serialize(value, width=10**6).strip().removesuffix("...").strip()
            yield path, comment_at(lines, key.start_mark.line), written


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
