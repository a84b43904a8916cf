"""Keys in which configs differ, and names that distinguish them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

Flat = dict[str, Any]
"""Values by dotted key; lists are values."""

TARGET = "_target_"
ABSENT = "–"


def flatten(node: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a nested mapping with their values; an empty mapping is a value."""
    if isinstance(node, Mapping) and node:
        for key, value in cast("Mapping[str, object]", node).items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


def differing(configs: Sequence[Flat]) -> dict[str, list[str]]:
    """Keys in which configs differ, with the value in each.

    Arguments of different classes are not comparable, so a key is included if it differs between configs with
    the same classes around it. The class of a node is listed under its key; of several nodes that distinguish
    the same configs (all parts of a family) only the first.
    """
    rows: dict[str, list[str]] = {}
    seen: set[tuple[int, ...]] = set()
    keys = dict.fromkeys(key for config in configs for key in config)
    for key in sorted(keys, key=lambda key: not key.startswith("model.")):  # stable for the others
        if not _differs(key, configs):
            continue
        values = [_text(config.get(key, ABSENT)) for config in configs]
        node, _, name = key.rpartition(".")
        if name != TARGET or not node:
            rows[key] = values
        elif (parts := tuple(values.index(value) for value in values)) not in seen:
            seen.add(parts)
            rows[node] = _short(values)
    return rows


def _differs(key: str, configs: Sequence[Flat]) -> bool:
    """Whether a key has two values among configs with the same classes around it."""
    parts = key.split(".")
    around = [".".join([*parts[:depth], TARGET]) for depth in range(1, len(parts))]
    found: dict[tuple[str, ...], set[str]] = {}
    for config in configs:
        classes = tuple(str(config.get(target)) for target in around if target != key)
        found.setdefault(classes, set()).add(repr(config.get(key, ABSENT)))
    return any(len(values) > 1 for values in found.values())


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(names: Sequence[str]) -> list[str]:
    """Names of classes without their modules, if they stay unique."""
    short = {name: name.rpartition(".")[2] for name in names}
    return [short[name] for name in names] if len(set(short.values())) == len(short) else list(names)


def named(labels: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Unique labels: a shared label is followed by the keys in which its settings differ."""
    found: list[str] = []
    for place, label in enumerate(labels):
        sharing = [other for other, name in enumerate(labels) if name == label]
        varying = [key for key, values in rows.items() if len({values[other] for other in sharing}) > 1]
        name = " ".join([label, ", ".join(f"{_last(key, varying)}={rows[key][place]}" for key in varying)])
        unique = name = name.strip()
        number = 1
        while unique in found:
            number += 1
            unique = f"{name} #{number}"
        found.append(unique)
    return found


def _last(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, or all of it if another key ends in the same."""
    end = key.rpartition(".")[2]
    return end if [other.rpartition(".")[2] for other in keys].count(end) == 1 else key
