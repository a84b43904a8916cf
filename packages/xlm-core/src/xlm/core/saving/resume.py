"""Selection of the checkpoint from which training resumes.

A file can be damaged, and an intact file can be unsuitable: of another network, without optimizer state, or
not a checkpoint. Both are reported and kept; the newest suitable one is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from xlm.core.config.errors import XLMError
from xlm.core.saving.checkpoints import LAST, SHARDED_REST, TooNewError, damage, read

Fits = Callable[[Mapping[str, Any]], str | None]
"""Returns why the content of a checkpoint does not fit the run; None if it fits."""
NEEDED = {
    "pytorch-lightning_version": str,
    "loops": Mapping,
    "DataModule": Mapping,
    "state_dict": Mapping,
    "optimizer_states": Sequence,
    "lr_schedulers": Sequence,
}
"""Keys required to resume, beside the step, and their types."""
SHARDED = ("state_dict", "optimizer_states")
"""Keys stored in the shards if a checkpoint is a folder."""


@dataclass(frozen=True)
class Header:
    """The part of a checkpoint that is read before it is used."""

    path: Path
    step: int
    stopped_early: bool


@dataclass(frozen=True)
class Found:
    """The checkpoint to resume from, and those that were skipped."""

    header: Header | None
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    """Unusable files and the reason. They are kept."""


def newest_valid(folder: Path, fits: Fits | None = None) -> Found:
    """Find the intact and suitable checkpoint of the latest step in ``folder``.

    Args:
        folder: Folder of checkpoints.
        fits: Checks each; None accepts every checkpoint that can be resumed.

    Raises:
        XLMError: If one has a later format version.
    """
    refused: dict[Path, str] = {}
    headers = list(_headers(folder, fits, refused))
    # At the same step the regular file comes first, since it is replaced next.
    headers.sort(key=lambda header: (header.step, header.path.name == LAST), reverse=True)
    for header in headers:
        reason = damage(header.path)
        if reason is None:
            return Found(header, refused)
        refused[header.path] = reason
    return Found(None, refused)


def _headers(folder: Path, fits: Fits | None, refused: dict[Path, str]) -> Iterator[Header]:
    for path in sorted(folder.glob("*.ckpt")):
        content = _open(path, refused)
        if content is None:
            continue
        reason = why_not(content, in_shards=path.is_dir()) or (fits(content) if fits is not None else None)
        if reason is not None:
            refused[path] = reason
        elif not content.get("xlm_lacks_last_validation", False):  # the previous one repeats the validation
            yield Header(path, content["global_step"], content.get("xlm_stopped_early") is True)


def _open(path: Path, refused: dict[Path, str]) -> dict[str, Any] | None:
    """Everything except the tensors, which stay in the file."""
    if path.is_dir() and (reason := damage(path)) is not None:
        refused[path] = reason
        return None
    try:
        # Of a sharded checkpoint, the file with everything except the shards.
        return read(path / SHARDED_REST if path.is_dir() else path, lazily=True)
    except TooNewError:
        raise
    except XLMError as error:
        # A damaged file can fail in any way; the checksums distinguish it from one that is not a checkpoint.
        refused[path] = damage(path) or f"it {str(error).removeprefix(f'ckpt_path: {path} ')}"
        return None


def why_not(content: Mapping[str, Any], *, in_shards: bool = False) -> str | None:
    """Explain why training cannot resume from this content; None if it can.

    Args:
        content: Content of a checkpoint.
        in_shards: Whether weights and optimizer state are in other files.
    """
    missing = [
        name
        for name, kind in NEEDED.items()
        if not (in_shards and name in SHARDED)
        and (not isinstance(content.get(name), kind) or not content[name])
    ]
    if type(content.get("global_step")) is not int or content["global_step"] < 0:
        missing.append("global_step")
    return f"training cannot resume from it: it has no {', '.join(missing)}" if missing else None


def misfit(
    content: Mapping[str, Any],
    weights: Mapping[str, tuple[int, ...]],
    groups: Sequence[int],
    origin: Mapping[str, Any],
) -> str | None:
    """Explain why a checkpoint does not fit a run; None if it fits.

    Args:
        content: Content of the checkpoint.
        weights: Shapes of the run's weights.
        groups: Number of weights in each parameter group of its optimizer.
        origin: Description of the run that it writes into its checkpoints.

    Returns:
        One line.
    """
    found = content.get("xlm_origin")
    if isinstance(found, Mapping):  # earlier versions wrote none
        of_run = cast("Mapping[str, object]", found)
        for name, own in origin.items():
            if name in of_run and of_run[name] != own:
                return f"it belongs to another {name}: {of_run[name]}, not {own}"
    if "state_dict" not in content:  # in shards
        return None
    state = cast("Mapping[str, Any]", content["state_dict"])
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    for name in (*weights, *shapes):
        if shapes.get(name) != weights.get(name):
            return (
                f"it belongs to another network: {name} is {_shape(shapes.get(name))} there, "
                f"{_shape(weights.get(name))} here"
            )
    return _other_optimizer(content["optimizer_states"], groups)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"{shape}"


def _other_optimizer(states: Sequence[Any], groups: Sequence[int]) -> str | None:
    try:
        found = [len(group["params"]) for group in states[0]["param_groups"]]
        states[0]["state"].keys()
    except (KeyError, TypeError, AttributeError, IndexError):
        return "training cannot resume from it: it has no optimizer state"
    if len(states) != 1 or found != list(groups):
        return f"it belongs to another optimizer: its groups have {found} weights, the run's {list(groups)}"
    return None
