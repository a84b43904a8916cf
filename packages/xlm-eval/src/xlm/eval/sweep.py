"""The grid of the job ``frontier``: its settings of the sampler, checked before torch is imported."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlm.core.config.differences import flatten
from xlm.core.config.entry_points import GENERATION, SAMPLER_LIKELIHOOD
from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean, listed
from xlm.core.config.schema import RunSettings

Sweep = Mapping[str, Sequence[Any]]
Point = Mapping[str, Any]
ROOTS = ("predictor", "sampler_likelihood")
"""Nodes whose keys may vary: neither the network nor the data depends on them."""
USES = (GENERATION, SAMPLER_LIKELIHOOD)
"""Uses of a loader that depend on the sampler."""
EXAMPLE = "'sweep={predictor.temperature: [0.7, 1.0]}'"


def check_sweep(sweep: Sweep, settings: RunSettings) -> None:
    """Reject a grid without settings, unknown keys, and data without a loader for the sampler.

    Raises:
        XLMError: If there is a mistake; names the key.
    """
    if not sweep:
        raise XLMError(f"sweep: missing. Set the values of each key: {EXAMPLE}")
    known = [key for root in ROOTS for key, _ in flatten(nodes(settings)[root], root)]
    for key, values in sweep.items():
        if key.split(".")[0] not in ROOTS:
            raise XLMError(
                f"sweep: {key} is not a key of the sampler; the network is evaluated as it is, so only keys "
                f"of {' and '.join(ROOTS)} vary"
            )
        if key not in known:
            raise XLMError(
                f"sweep: there is no {key} in the config.{did_you_mean(key, known)}{listed(known, 'Known:')}"
            )
        if not values:
            raise XLMError(f"sweep: {key} has no values. Set them: {EXAMPLE}")
        if len({repr(value) for value in values}) < len(values):
            raise XLMError(f"sweep: {key} has a value twice: {values}")
    if not settings.datamodule.only(*USES).test:
        raise XLMError(
            "datamodule.test: job_type=frontier needs a loader with `uses: [generation]` or "
            "`[sampler_likelihood]`"
        )
    check_one_process(settings)


def check_one_process(settings: RunSettings) -> None:
    """Reject several devices.

    Raises:
        XLMError: If there are several; names the key.
    """
    if settings.trainer.num_nodes > 1 or settings.trainer.devices not in (1, "1", "auto", [0]):
        raise XLMError(
            f"trainer.devices: got {settings.trainer.devices!r} on {settings.trainer.num_nodes} machines. "
            f"job_type={settings.job_type} runs in one process: trainer.devices=1"
        )


def nodes(settings: RunSettings) -> dict[str, dict[str, Any]]:
    """The nodes whose keys may vary, as plain values."""
    likelihood = settings.sampler_likelihood
    return {
        "predictor": dict(settings.predictor),
        "sampler_likelihood": likelihood.model_dump() if likelihood is not None else {},
    }


def points(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every combination of the values; the last key varies fastest."""
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def with_values(node: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """A copy of a nested mapping with the values of some dotted keys."""
    copy = {
        key: with_values(value, {}) if isinstance(value, Mapping) else value for key, value in node.items()
    }
    for key, value in point.items():
        *above, last = key.split(".")
        inner = copy
        for name in above:
            inner = inner[name]
        inner[last] = value
    return copy


def point_name(point: Point) -> str:
    """Name of the folder of a point: its values under the shortest names that are unique."""
    parts: list[str] = []
    for key, value in point.items():
        end = key.rpartition(".")[2]
        same = [other for other in point if other.rpartition(".")[2] == end]
        text = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in _plain(value))
        parts.append(f"{end if len(same) == 1 else key}={text}")
    return ",".join(parts)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "_".join(f"{key}-{_plain(inner)}" for key, inner in flatten(value))
    return "null" if value is None else str(value)
