"""The page of every configuration key, generated from the schema and the YAML files.

The meaning of a key that the harness reads is the docstring beside its field in
`xlm.core.config.schema`; that of an argument of a slot is the comment in the YAML file, or else the
entry in the docstring of the class. Torch is not imported: sources are parsed, not loaded.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from pydantic import BaseModel

from xlm.core.command.discovery import ConfigPackage, config_packages
from xlm.core.config.meanings import argument_meanings, comment_at, field_meanings
from xlm.core.config.schema import RunSettings

ROOT = Path(__file__).parents[2]
COMPOSITIONS = ("experiment", "recipe", "task", "datamodule", "debug")
"""Groups whose options set keys that are explained elsewhere."""


@dataclass(frozen=True)
class Option:
    """One YAML file of a group."""

    group: str
    name: str
    package: ConfigPackage
    path: Path

    @property
    def text(self) -> str:
        """The file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def is_composition(self) -> bool:
        """Whether it sets keys that are explained elsewhere, and is listed with its purpose only."""
        return self.group in COMPOSITIONS or (
            "@package _global_" in self.text and "_target_" not in self.text
        )

    @property
    def purpose(self) -> str:
        """The comment at the head of the file, or what a plain experiment is made of."""
        lines: list[str] = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            if not line.startswith("# @package"):
                lines.append(line.lstrip("# "))
        base = re.findall(r"defaults: \[(?!override|_self_)(\w+),", self.text)
        parts = re.findall(r"override /(recipe|task|model_type|model): (\w+)", self.text)
        made_of = [f"`{name}`" for name in base] + [f"{group} `{name}`" for group, name in parts]
        return " ".join(lines) or ", ".join(made_of)


def options() -> list[Option]:
    """Every option of every group of the installed packages."""
    return [
        Option(path.relative_to(package.folder).parent.as_posix(), path.stem, package, path)
        for package in config_packages()
        if package.folder is not None
        for path in sorted(package.folder.rglob("*.yaml"))
        if path.name != "config.yaml"
    ]


# ---- keys that the harness reads ----------------------------------------------------------------------


def schema_rows() -> Iterator[tuple[str, str, str, str]]:
    """Key, allowed values, default, meaning of everything that `xlm.core.config.schema` describes."""
    meanings = field_meanings()
    yield from _class_rows(RunSettings, "", meanings, defaults())


def _class_rows(
    model: type[BaseModel], prefix: str, meanings: Mapping[str, Mapping[str, str]], values: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    schema, shown_before, comments = model.model_json_schema(), set[object](), core_comments()
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        key = f"{prefix}{name}"
        allowed = "; ".join(dict.fromkeys(_allowed(schema["properties"][name], schema.get("$defs", {}))))
        value = values.get(name, "???" if field.is_required() else field.default)
        parts: list[Any] = [field.annotation, *get_args(field.annotation)]
        nested = [cast("type[BaseModel]", part) for part in parts if _is_settings(part)]
        shown = (
            "" if isinstance(value, Mapping) and value else f"`{_yaml(value)}`".replace("`???`", "*required*")
        )
        yield key, allowed, shown, meanings.get(model.__name__, {}).get(attribute) or comments.get(key, "")
        for part in nested:
            if part in shown_before:  # the loaders of all stages have the same keys
                continue
            shown_before.add(part)
            inner = "NAME." if get_origin(field.annotation) is dict else ""
            below = next(iter(value.values()), {}) if inner and isinstance(value, Mapping) else value
            yield from _class_rows(
                part, f"{key}.{inner}", meanings, below if isinstance(below, Mapping) else {}
            )


def _is_settings(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}


def _allowed(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    for alternative in [*node.get("anyOf", []), *node.get("oneOf", [])]:
        yield from _allowed(alternative, definitions)
    if "$ref" in node:
        yield "a node of its own, below"
    elif "enum" in node or "const" in node:
        yield ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    elif node.get("type") == "array":
        yield f"list of: {'; '.join(_allowed(node['items'], definitions))}"
    elif node.get("type") == "object":
        inner = node.get("additionalProperties")
        yield (
            f"by name: {'; '.join(_allowed(inner, definitions))}"
            if isinstance(inner, dict) and inner
            else "slot"
        )
    elif node.get("type") == "null":
        yield "null"
    elif "type" in node:
        kind = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
        bounds = [f"{words} {_number(node[name])}" for name, words in BOUNDS.items() if name in node]
        pattern = [f"matching `{node['pattern']}`"] if "pattern" in node else []
        yield ", ".join([kind[node["type"]], *bounds, *pattern])


def _number(value: float) -> str:
    """A bound without a needless point, and with all of its digits."""
    return str(int(value)) if value == int(value) else str(value)


def core_folder() -> Path:
    """Folder of the core's configs."""
    folder = next(package.folder for package in config_packages() if package.name == "core")
    assert folder is not None
    return folder


@cache
def core_comments() -> dict[str, str]:
    """The comments beside the keys of `config.yaml`."""
    text = (core_folder() / "config.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return {key: comment for key, _, comment in _mapping_rows(root, "", None, text.splitlines())}


def defaults() -> dict[str, Any]:
    """What the core's own files set, before any experiment."""
    folder = core_folder()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    chosen = {
        group: option
        for entry in config["defaults"]
        if isinstance(entry, dict)
        for group, option in entry.items()
    }
    for group, option in (("trainer", "default"), ("datamodule", "base")):
        config[group] = yaml.safe_load((folder / group / f"{option}.yaml").read_text())
    groups = {
        group: f"{group}={option}" for group, option in chosen.items() if option and group not in config
    }
    return groups | {key: value for key, value in config.items() if key not in ("defaults", "hydra")}


# ---- arguments of slots ---------------------------------------------------------------------------------


def slot_rows(option: Option) -> Iterator[tuple[str, str, str]]:
    """Key, value and meaning of each key of an option; `_target_` rows name the class."""
    root = yaml.compose(option.text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        meanings = {name.removeprefix(f"{option.group}."): text for name, _, _, text in schema_rows()}
        for path, value, meaning in _mapping_rows(root, "", _target(option), option.text.splitlines()):
            yield path, value, meaning or meanings.get(path, "")


def _target(option: Option) -> str | None:
    """The class of an option, which it may take from another option of its group."""
    content = yaml.safe_load(option.text)
    if "_target_" in content:
        return content["_target_"]
    parents = [name for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    same_group = {other.name: other for other in options() if other.group == option.group}
    return next((_target(same_group[name]) for name in parents if name in same_group), None)


def _mapping_rows(
    node: yaml.MappingNode, prefix: str, target: str | None, lines: list[str]
) -> Iterator[tuple[str, str, str]]:
    pairs = [(str(key.value), key, value) for key, value in node.value]
    target = next((value.value for name, _, value in pairs if name == "_target_"), target)
    known = argument_meanings(target) if target else {}
    for name, key, value in pairs:
        if name in ("defaults", "_partial_", "_recursive_", "_convert_"):
            continue
        path = f"{prefix}{name}"
        comment = comment_at(lines, key.start_mark.line)
        if name == "_target_":
            yield path, value.value, ""
        elif isinstance(value, yaml.MappingNode) and any(k.value == "_target_" for k, _ in value.value):
            yield path, "", comment or known.get(name, "")
            yield from _mapping_rows(value, f"{path}.", None, lines)
        elif isinstance(value, yaml.MappingNode) and not (comment or known.get(name)):
            yield from _mapping_rows(value, f"{path}.", target, lines)
        else:
            yield path, _source(value, lines), comment or known.get(name, "")


def _source(node: yaml.Node, lines: list[str]) -> str:
    start, end = node.start_mark, node.end_mark
    if start.line != end.line:
        return _yaml(yaml.safe_load("\n".join(lines[start.line : end.line])))
    return lines[start.line][start.column : end.column].strip()


def unexplained() -> list[str]:
    """Keys of shipped configs that neither a comment nor a docstring explains."""
    missing = [f"xlm.core.config.schema: {key}" for key, _, _, meaning in schema_rows() if not meaning]
    for option in options():
        if option.is_composition:
            if not option.purpose:
                missing.append(f"{option.path.relative_to(ROOT)}: no comment at its head")
            continue
        missing += [
            f"{option.path.relative_to(ROOT)}: {path}"
            for path, value, meaning in slot_rows(option)
            if value and not meaning and not path.endswith("_target_")
        ]
    return missing


# ---- the page -------------------------------------------------------------------------------------------


def page() -> str:
    """The page as Markdown."""
    parts = [
        INTRODUCTION,
        "## Keys of the harness",
        _table(("key", "allowed", "default", "meaning"), schema_rows()),
    ]
    by_group: dict[str, list[Option]] = {}
    for option in options():
        by_group.setdefault(option.group, []).append(option)
    for group, found in sorted(by_group.items()):
        if group.startswith("hydra"):
            continue
        if group == ".":
            parts += ["## In every config", *(f"{o.purpose}\n\n{_option_section(o)}" for o in found)]
            continue
        parts.append(f"## Group `{group}`")
        rows = ((f"`{group}={o.name}`", o.package.distribution, _cell(o.purpose)) for o in found)
        parts.append(_raw_table(("option", "package", "what it is"), rows))
        parts += [_option_section(option) for option in found if not option.is_composition]
    return "\n\n".join(part for part in parts if part) + "\n"


def _option_section(option: Option) -> str:
    rows = [
        (f"`{path}`", f"`{_cell(value)}`" if value else "", _cell(meaning))
        for path, value, meaning in slot_rows(option)
        if value
    ]
    if not rows:
        return ""
    title = option.name if option.group == "." else f"{option.group}={option.name}"
    return f"### `{title}`\n\n" + _raw_table(("key", "value", "meaning"), rows)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, str, str, str]]) -> str:
    shown = ((f"`{key}`", _cell(allowed), value, _cell(text)) for key, allowed, value, text in rows)
    return _raw_table(head, shown)


def _raw_table(head: tuple[str, ...], rows: Any) -> str:
    lines = [" | ".join(row) for row in (head, tuple("---" for _ in head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()


INTRODUCTION = """# Every configuration key

This page is made from `xlm.core.config.schema` and from the YAML files of the installed packages when the
site is built. Any key can be set on the command line (`KEY=VALUE`), a group's option is chosen by
`GROUP=OPTION`, a key that is not there yet is added with `+KEY=VALUE`. `--cfg job` prints the config of a
command, `--cfg explained` with the meaning, the default and the file of each of its keys.

*Slot* stands for a node with a `_target_`: any importable class or function. *Required* means that an
experiment or the command line must set it. `NAME` stands for a name of your choice."""


if __name__ == "__main__":
    print(page())  # noqa: T201
